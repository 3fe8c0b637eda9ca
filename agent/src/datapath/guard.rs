//! The rule in the packet filter for devices that have no program (yet): what a pod sent and nobody has judged does
//! not leave by them. And the look for others who use the same bits of marks.

use reeve_abi::mark::{KIND_BITS, KIND_PENDING, MASK, SLOT_BITS};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The agent's table.
pub const TABLE: &str = "inet reeve";

/// Between two looks whether the rule is still there.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Why the rule does not stand, or who else uses the bits.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum GuardError {
    #[error("the program nft is not installed: the rule for devices without programs cannot be made")]
    NoProgram,
    #[error("nft cannot be run")]
    Run(#[source] io::Error),
    #[error("nft refuses the agent's table: {0}")]
    Refused(String),
    #[error("the bits {mask:#010x} of packet marks are in use by somebody else ({bits:#010x}, by {tool}): {rule}")]
    Taken { mask: u32, bits: u32, tool: &'static str, rule: String },
}

/// The rule, as it was last made.
#[derive(Debug)]
pub struct Guard {
    shift: u32,
    made_for: Option<BTreeSet<u32>>,
    looked_at: Instant,
}

impl Guard {
    /// For marks in bits from `shift` on; nothing is made yet.
    pub fn new(shift: u32) -> Self {
        Self { shift, made_for: None, looked_at: Instant::now() }
    }

    /// Makes the rule let pending packets leave by these devices only.
    pub fn follow(&mut self, devices: &BTreeSet<u32>) -> Result<(), GuardError> {
        if self.looked_at.elapsed() >= LOOK_EVERY {
            self.looked_at = Instant::now();
            if self.made_for.is_some() && nft(&["list", "table", "inet", "reeve"], None).is_err() {
                tracing::warn!(table = TABLE, "the agent's table was gone; it is made again");
                self.made_for = None;
            }
        }
        if self.made_for.as_ref() == Some(devices) {
            return Ok(());
        }
        // A table that is made anew waits for packets that are on their way: what differs is a fraction of that.
        let differs = self.made_for.take().map(|made| difference(&made, devices));
        if differs.is_none_or(|differs| nft(&["-f", "-"], Some(&differs)).is_err()) {
            nft(&["-f", "-"], Some(&script(self.shift, devices)))?;
        }
        self.made_for = Some(devices.clone());
        Ok(())
    }

    /// Lets pending packets leave by one more device, if the rule stands.
    pub fn admit(&mut self, ifindex: u32) -> Result<(), GuardError> {
        let Some(made) = &self.made_for else { return Ok(()) };
        let mut devices = made.clone();
        if devices.insert(ifindex) { self.follow(&devices) } else { Ok(()) }
    }
}

/// One transaction that leads from one set of devices to another.
fn difference(from: &BTreeSet<u32>, to: &BTreeSet<u32>) -> String {
    let mut script = String::new();
    for (verb, devices) in [("add", to - from), ("delete", from - to)] {
        if !devices.is_empty() {
            writeln!(script, "{verb} element {TABLE} hooked {{ {} }}", listed(&devices))
                .expect("a string takes all text");
        }
    }
    script
}

fn listed(devices: &BTreeSet<u32>) -> String {
    devices.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// One transaction: the table goes and comes at once. `iif` keeps the rule off what the node itself makes.
fn script(shift: u32, devices: &BTreeSet<u32>) -> String {
    let kinds = ((1 << KIND_BITS) - 1_u32) << (SLOT_BITS + shift);
    let pending = KIND_PENDING << (SLOT_BITS + shift);
    let elements = if devices.is_empty() { String::new() } else { format!("elements = {{ {} }}", listed(devices)) };
    format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n\
         set hooked {{ type iface_index; {elements} }}\n\
         chain leaving {{ type filter hook postrouting priority 300; policy accept;\n\
         meta mark & {kinds:#010x} == {pending:#010x} iif != 1 oif != @hooked counter drop\n}}\n}}\n"
    )
}

/// Takes the agent's table away; true if there was one. Without nft there is none.
pub fn remove() -> Result<bool, GuardError> {
    match nft(&["delete", "table", "inet", "reeve"], None) {
        Ok(_) => Ok(true),
        Err(GuardError::NoProgram) => Ok(false),
        Err(GuardError::Refused(said)) if said.contains("No such file") => Ok(false),
        Err(error) => Err(error),
    }
}

fn nft(arguments: &[&str], input: Option<&str>) -> Result<String, GuardError> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(GuardError::NoProgram),
        other => other.map_err(GuardError::Run)?,
    };
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(GuardError::Run)?;
    }
    let output = child.wait_with_output().map_err(GuardError::Run)?;
    if !output.status.success() {
        return Err(GuardError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks for rules of others that write or read the bits from `shift` on. A tool that is not installed has none.
pub fn look_for_others(shift: u32) -> Result<(), GuardError> {
    let mask = MASK << shift;
    let taken = |tool, found: Option<(u32, String)>| match found {
        Some((bits, rule)) => Err(GuardError::Taken { mask, bits, tool, rule }),
        None => Ok(()),
    };
    match nft(&["list", "ruleset"], None) {
        Ok(text) => taken("nft", users(&text, mask, nft_bits))?,
        Err(GuardError::NoProgram) => {}
        Err(error) => tracing::warn!(%error, "rules of nft cannot be listed"),
    }
    for tool in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        match Command::new(tool).stdin(Stdio::null()).stderr(Stdio::null()).output() {
            Ok(output) => taken(tool, users(&String::from_utf8_lossy(&output.stdout), mask, iptables_bits))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(tool, %error, "rules cannot be listed"),
        }
    }
    Ok(())
}

/// The first line that uses some of the bits, outside of the agent's own table.
fn users(text: &str, mask: u32, bits_of: fn(&str) -> u32) -> Option<(u32, String)> {
    let mut own = false;
    for line in text.lines() {
        if line.starts_with("table ") {
            own = line.starts_with(&format!("table {TABLE} "));
        }
        let bits = if own { 0 } else { bits_of(line) & mask };
        if bits != 0 {
            return Some((bits, line.trim().to_owned()));
        }
    }
    None
}

/// A number as rules write it.
fn number(text: &str) -> Option<u32> {
    let text = text.trim_end_matches([',', ';']);
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Bits of the packet's mark that a line of `iptables-save` writes or reads.
fn iptables_bits(line: &str) -> u32 {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (mut module, mut bits) = ("", 0);
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1).copied().unwrap_or_default();
        let whole = || next.split_once('/').map_or((number(next), None), |(value, mask)| (number(value), number(mask)));
        bits |= match (module, *word) {
            (_, "-m" | "-j") => {
                module = next;
                0
            }
            // What is set beyond the mask is written too. What cannot be read is taken for all bits.
            ("MARK", "--set-xmark" | "--set-mark") => {
                whole().0.map_or(u32::MAX, |value| value | whole().1.unwrap_or(u32::MAX))
            }
            ("MARK", "--or-mark" | "--xor-mark") => number(next).unwrap_or(u32::MAX),
            ("MARK", "--and-mark") => !number(next).unwrap_or_default(),
            ("CONNMARK", "--restore-mark") => {
                let masked = words.iter().position(|word| matches!(*word, "--nfmask" | "--mask"));
                masked.and_then(|at| words.get(at + 1)).and_then(|mask| number(mask)).unwrap_or(u32::MAX)
            }
            ("mark", "--mark") => whole().1.unwrap_or(u32::MAX),
            _ => 0,
        };
    }
    bits
}

/// Bits of the packet's mark that a line of `nft list ruleset` writes or reads. It names the mark `meta mark`, or only
/// `mark` where it shows a rule of iptables.
fn nft_bits(line: &str) -> u32 {
    // What stands in quotes is a name or a comment.
    let plain: String = line.split('"').step_by(2).collect();
    let words: Vec<&str> = plain.split_whitespace().filter(|word| *word != "meta").collect();
    let mut bits = 0;
    let mut at = 0;
    while let Some(found) = words[at..].iter().position(|word| *word == "mark") {
        at += found + 1;
        if at >= 2 && words[at - 2] == "ct" {
            continue; // the connection's
        }
        let writes = words.get(at) == Some(&"set");
        if writes && words.get(at + 1) != Some(&"mark") {
            return u32::MAX; // a value as a whole, or out of the connection
        }
        if writes {
            at += 2;
        }
        let word = |ahead: usize| words.get(at + ahead).copied().unwrap_or_default();
        let operand = number(word(1));
        bits |= match (writes, word(0), operand) {
            (true, "&" | "and", Some(operand)) => match word(2) {
                "|" | "or" | "^" | "xor" => !operand | number(word(3)).unwrap_or(u32::MAX),
                _ => !operand,
            },
            (true, "|" | "or" | "^" | "xor", Some(operand)) | (false, "&" | "and", Some(operand)) => operand,
            (true, ..) => u32::MAX,
            (false, first, _) if matches!(first, "==" | "!=" | "{") || number(first).is_some() => u32::MAX,
            (false, ..) => 0, // another thing of that name
        };
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bits_of: fn(&str) -> u32, line: &str, want: u32) {
        assert_eq!(bits_of(line), want, "{line}");
    }

    #[test]
    fn rules_of_iptables_say_which_bits_they_use() {
        for (line, want) in [
            ("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000", 0x4000),
            ("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", 0x4000),
            ("-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0", 0x4000),
            ("-A cali-PREROUTING -j MARK --set-xmark 0x0/0xe0000", 0xe_0000),
            ("-A X -j MARK --set-xmark 0x1/0xffffffff", u32::MAX),
            ("-A X -j MARK --and-mark 0xfff8ffff", 0x7_0000),
            ("-A X -m mark --mark 0x1 -j ACCEPT", u32::MAX),
            ("-A X -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", u32::MAX),
            ("-A X -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", 0xff),
            ("-A X -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", 0),
            ("-A X -m connmark --mark 0x10000/0x10000 -j ACCEPT", 0),
            ("-A X -p tcp -m tcp --dport 80 -j ACCEPT", 0),
        ] {
            check(iptables_bits, line, want);
        }
    }

    #[test]
    fn rules_of_nft_say_which_bits_they_use() {
        for (line, want) in [
            ("meta mark set meta mark | 0x00004000", 0x4000),
            ("meta mark & 0x00004000 == 0x00000000 return", 0x4000),
            ("meta mark set meta mark ^ 0x00004000", 0x4000),
            ("meta mark set meta mark & 0xfff1ffff | 0x00020000", 0xe_0000),
            ("meta mark set 0x00000001 accept", u32::MAX),
            ("meta mark set ct mark", u32::MAX),
            ("meta mark 0x00000001 accept", u32::MAX),
            ("ct mark set meta mark & 0x0000ffff", 0xffff),
            ("ct mark 0x10000 accept", 0),
            ("ip daddr 10.0.0.1 accept", 0),
            ("meta mark & 0x1 == 0x1 meta mark set meta mark | 0x2", 3),
            ("counter packets 0 bytes 0 meta mark set mark xor 0x4000", 0x4000),
            ("mark and 0x4000 != 0x4000 counter packets 0 bytes 0 return", 0x4000),
            ("meta mark != 0x0 accept", u32::MAX),
            ("jump mark comment \"mark 0x10000\"", 0),
        ] {
            check(nft_bits, line, want);
        }
    }

    #[test]
    fn the_agents_own_rule_is_nobody_elses() {
        let own = "table inet reeve {\n\tmeta mark & 0x30000000 == 0x20000000 drop\n}\n";
        assert_eq!(users(own, MASK << 16, nft_bits), None);
        let other = format!("{own}table ip cali {{\n\t\tmeta mark set meta mark | 0x00010000\n}}\n");
        let found = Some((0x1_0000, "meta mark set meta mark | 0x00010000".to_owned()));
        assert_eq!(users(&other, MASK << 16, nft_bits), found);
        assert_eq!(users(&other, MASK, nft_bits), None, "other bits are nobody's business");
    }

    #[test]
    fn the_rule_names_kind_bits_and_devices() {
        let text = script(16, &BTreeSet::from([2, 7]));
        assert!(text.contains("meta mark & 0x30000000 == 0x20000000"), "{text}");
        assert!(text.contains("elements = { 2, 7 }"), "{text}");
        assert!(!script(16, &BTreeSet::new()).contains("elements"));
    }

    #[test]
    fn what_differs_between_two_sets_is_added_and_deleted_by_name() {
        let (from, to) = (BTreeSet::from([2, 7]), BTreeSet::from([7, 8, 9]));
        let both = "add element inet reeve hooked { 8, 9 }\ndelete element inet reeve hooked { 2 }\n";
        assert_eq!(difference(&from, &to), both);
        assert_eq!(difference(&from, &BTreeSet::from([2, 7, 8])), "add element inet reeve hooked { 8 }\n");
    }
}
