//! What runs in pods of the daemonset tier: an HTTP server, clients that say what they got, and the sandbox of a pod.
//!
//! Every mode but `get` ends when it is told to, as the first process of a container has to see to itself.

use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Longest wait for an answer that may come late: neighbours are asked for, machines are busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection that must not come about gets to come about.
const DENIED_PATIENCE: Duration = Duration::from_millis(300);

/// Between two requests on one connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Nobody sends longer heads or bodies here.
const MOST_BYTES: usize = 4096;

const USAGE: &str = "usage: reeve-pod [serve PORT | get ADDRESS:PORT | hold ADDRESS:PORT | probe ALLOWED DENIED]";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Box<dyn Error>> {
    match *words {
        // The sandbox, and a pod that others run clients in.
        [] => {
            let _ = told_to_end()?.recv();
            Ok(())
        }
        ["serve", port] => serve(port.parse()?),
        ["get", to] => {
            let mut connection = connect(to.parse()?, PATIENCE)?;
            println!("{}", ask(&mut connection)?);
            Ok(())
        }
        ["hold", to] => hold(to.parse()?),
        ["probe", allowed, denied] => probe(allowed.parse()?, denied.parse()?),
        _ => Err(USAGE.into()),
    }
}

/// Hears once when this process is told to end.
fn told_to_end() -> io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        signals.forever().next();
        // Nobody listens where the end has come already.
        let _ = tell.send(());
    });
    Ok(told)
}

/// Answers every request with who asks, in both families.
fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let end = told_to_end()?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || answer(connection));
        }
    });
    let _ = end.recv();
    Ok(())
}

/// Answers the requests of one connection until it ends.
fn answer(mut connection: TcpStream) {
    let Ok(peer) = connection.peer_addr() else { return };
    let body = format!("hello {}", peer.ip().to_canonical());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    while matches!(head(&mut connection), Ok(Some(_))) {
        if connection.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A head of HTTP and what came with it; none at the end of a connection.
fn head(connection: &mut TcpStream) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut some = [0; 512];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut some)? {
            0 if bytes.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend(&some[..count]),
        }
        if bytes.len() > MOST_BYTES {
            return Err(io::Error::other("a head without end"));
        }
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&to, patience)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// One request, and the answer's body.
fn ask(connection: &mut TcpStream) -> Result<String, Box<dyn Error>> {
    connection.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")?;
    let answer = head(connection)?.ok_or("the other side ended the connection")?;
    // The server sends head and body at once, and they are short.
    let body = answer.strip_prefix("HTTP/1.1 200 OK\r\n").and_then(|rest| rest.split_once("\r\n\r\n"));
    Ok(body.ok_or_else(|| format!("no answer: {answer}"))?.1.to_owned())
}

/// One connection, asked again and again until there is no answer; says how often there was one.
fn hold(to: SocketAddr) -> Result<(), Box<dyn Error>> {
    let end = told_to_end()?;
    let mut connection = connect(to, PATIENCE)?;
    for count in 1_u64.. {
        if let Err(error) = ask(&mut connection) {
            return Err(format!("cut after {} answers: {error}", count - 1).into());
        }
        println!("answer {count}");
        if !matches!(end.recv_timeout(PAUSE), Err(RecvTimeoutError::Timeout)) {
            break;
        }
    }
    Ok(())
}

/// New connections all the time, to one that must answer and to one that must not; says each verdict that is wrong.
fn probe(allowed: SocketAddr, denied: SocketAddr) -> Result<(), Box<dyn Error>> {
    let end = told_to_end()?;
    for round in 1_u64.. {
        if let Err(error) = connect(allowed, PATIENCE).map_err(Into::into).and_then(|mut held| ask(&mut held)) {
            println!("wrong: {allowed} does not answer in round {round}: {error}");
        }
        if connect(denied, DENIED_PATIENCE).is_ok() {
            println!("wrong: {denied} answers in round {round}");
        }
        println!("round {round}");
        if !matches!(end.try_recv(), Err(mpsc::TryRecvError::Empty)) {
            break;
        }
    }
    Ok(())
}
