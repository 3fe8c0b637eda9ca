//! Plans in the kernel: one operation at a time, as the agent does them, also while packets run.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context;
use bytemuck::Pod;
use reeve_abi::config::Config;
use reeve_abi::event::Event;
use reeve_abi::ids::WorkloadId;
use reeve_policy::plan::Op;

use super::image::{at, endpoint_row, placed};
use super::{Action, Kernel, Program, Programs, Rows, context};

/// `MEMBARRIER_CMD_GLOBAL`: returns after a grace period of RCU.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
/// What one plan is given at most, so that the ring buffer holds all that is told.
const MOST_RUNS: u64 = 1_200;
/// In place of their number: no more are run.
const ENDED: u64 = u64::MAX;

/// Every row of every map that plans write, by the map's name, key and value as bytes; without revisions.
pub type Dump = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

/// A packet on its way: where it is seen first, and where it leaves if it was not judged there.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Program, device and the device where it entered.
    pub first: (Program, u32, u32),
    /// The same for where it goes on, still marked; `None`: it is judged where it is seen first.
    pub then: Option<(Program, u32, u32)>,
}

/// What became of a packet while a plan was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Which one, counted from 0.
    pub nth: u64,
    /// What became of it in the end.
    pub action: Action,
}

impl Kernel {
    /// Carries out one operation; `devices` says at which interface each workload is.
    pub fn execute(&mut self, op: &Op, devices: &HashMap<WorkloadId, u32>) -> anyhow::Result<()> {
        if let Op::PutEndpoint(workload, _) = op {
            self.interface(*devices.get(workload).with_context(|| format!("{workload} has no interface"))?)?;
        }
        self.carry_out(op, devices)
    }

    fn carry_out(&self, op: &Op, devices: &HashMap<WorkloadId, u32>) -> anyhow::Result<()> {
        match op {
            Op::PutPort(key, value) => self.ports().put(key, value),
            Op::DeletePort(key) => self.ports().remove(key),
            Op::PutRange(key, value) => self.ranges().put(key, value),
            Op::DeleteRange(key) => self.ranges().remove(key),
            Op::PutPeer(key, value) => self.peers().put(key, value),
            Op::DeletePeer(key) => self.peers().remove(key),
            Op::PutClass(key, value) => self.classes().put(key, value),
            Op::DeleteClass(key) => self.classes().remove(key),
            Op::PutNetwork(key, value) => self.networks().put(key, value),
            Op::DeleteNetwork(key) => self.networks().remove(key),
            Op::PutAddress(key, value) => self.addresses().put(key, &placed(value, devices)),
            Op::DeleteAddress(key) => self.addresses().remove(key),
            Op::PutEndpoint(workload, endpoint) => {
                let ifindex = devices[workload];
                let row = at(endpoint_row(*workload, endpoint), ifindex);
                self.endpoints().put(&ifindex, &row)?;
                self.renew()
            }
            Op::DeleteEndpoint(workload) => {
                devices.get(workload).map_or(Ok(()), |ifindex| self.endpoints().remove(ifindex))?;
                self.renew()
            }
            Op::BumpAddressEpoch => {
                let config = self.config().get(&0)?.unwrap_or(Config::DEFAULT);
                self.config().put(&0, &Config { address_epoch: config.address_epoch + 1, ..config })
            }
        }
    }

    /// Carries out a plan while another thread sends packets, `packet(n)` being the n-th: each operation falls into the
    /// run of one. Returns what became of each, and all that was told meanwhile.
    pub fn execute_under_traffic(
        &mut self,
        plan: &[Op],
        devices: &HashMap<WorkloadId, u32>,
        packet: impl Fn(u64) -> Sent + Sync,
    ) -> anyhow::Result<(Vec<Ran>, Vec<Event>)> {
        for ifindex in devices.values() {
            self.interface(*ifindex)?;
        }
        self.take_events();
        let (done, runs) = (AtomicBool::new(false), AtomicU64::new(0));
        let programs = Programs(&self.programs);
        let send = || {
            let mut all = Vec::new();
            let some = (0..MOST_RUNS).take_while(|_| !done.load(Ordering::Acquire));
            let sent = some.map(|nth| {
                all.push(Ran { nth, action: sent(programs, &packet(nth))? });
                runs.store(nth + 1, Ordering::Release);
                Ok(())
            });
            let sent: anyhow::Result<()> = sent.collect();
            runs.store(ENDED, Ordering::Release);
            sent.map(|()| all)
        };
        let all = std::thread::scope(|scope| {
            let sender = scope.spawn(send);
            let planned = plan_steps(plan, |op| {
                let before = runs.load(Ordering::Acquire);
                self.carry_out(op, devices)?;
                while before != ENDED && runs.load(Ordering::Acquire) == before {
                    std::hint::spin_loop();
                }
                Ok(())
            });
            done.store(true, Ordering::Release);
            let all = sender.join().expect("it does not panic");
            planned.and(all)
        })?;
        Ok((all, self.take_events()))
    }

    /// Sends one packet now; what became of it, and what was told of it.
    pub fn send(&mut self, packet: &Sent) -> anyhow::Result<(Action, Vec<Event>)> {
        for (_, ifindex, _) in [Some(packet.first), packet.then].into_iter().flatten() {
            self.interface(ifindex)?;
        }
        let action = sent(Programs(&self.programs), packet)?;
        Ok((action, self.take_events()))
    }

    /// What plans write, to be compared.
    pub fn dump(&self) -> anyhow::Result<Dump> {
        let mut endpoints = self.endpoints().all()?;
        for (_, row) in &mut endpoints {
            (row.head_revision, row.tail_revision) = Default::default();
        }
        let rows = |row: (u32, _)| (bytemuck::bytes_of(&row.0).to_vec(), bytemuck::bytes_of(&row.1).to_vec());
        Ok(Dump::from([
            ("ENDPOINTS", endpoints.into_iter().map(rows).collect()),
            ("ADDRESSES", bytes(&self.addresses())?),
            ("NETWORKS", bytes(&self.networks())?),
            ("CLASSES", bytes(&self.classes())?),
            ("PEERS", bytes(&self.peers())?),
            ("PORTS", bytes(&self.ports())?),
            ("RANGES", bytes(&self.ranges())?),
        ]))
    }
}

/// Does a plan's steps as the agent does: what only a packet on its way could still refer to goes after a grace period.
pub(super) fn plan_steps(plan: &[Op], mut step: impl FnMut(&Op) -> anyhow::Result<()>) -> anyhow::Result<()> {
    use Op::{DeleteAddress, DeleteClass, DeleteNetwork, DeletePeer, DeletePort, DeleteRange};
    let mut flipped = false;
    for op in plan {
        let removes = matches!(
            op,
            DeletePort(_) | DeleteRange(_) | DeletePeer(_) | DeleteClass(_) | DeleteNetwork(_) | DeleteAddress(_)
        );
        if flipped && removes {
            // SAFETY: takes numbers only.
            let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
            anyhow::ensure!(result == 0, "the kernel has no global membarrier: {}", std::io::Error::last_os_error());
            flipped = false;
        }
        flipped |= matches!(op, Op::PutEndpoint(..));
        step(op)?;
    }
    Ok(())
}

fn sent(programs: Programs<'_>, packet: &Sent) -> anyhow::Result<Action> {
    let run = |(program, ifindex, enters): (Program, u32, u32), mark| {
        programs.run(program, &packet.frame, &context(ifindex, enters, mark))
    };
    let (action, mark) = run(packet.first, 0)?;
    match packet.then {
        Some(then) if action == Action::Continue => run(then, mark).map(|(action, _)| action),
        _ => Ok(action),
    }
}

fn bytes<K: Pod, V: Pod>(rows: &Rows<'_, K, V>) -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let all = rows.all()?;
    Ok(all.iter().map(|(key, value)| (bytemuck::bytes_of(key).to_vec(), bytemuck::bytes_of(value).to_vec())).collect())
}
