//! Under a service manager: what it is told, and the sockets that it passes.

use std::{
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use proxy_tests::{
    daemon::Setup,
    deadline::PATIENCE,
    lab::{Family, Lab},
    origin::Origin,
    require_root_or_skip, require_tool_or_skip,
};
use rustix::process::Signal;

use crate::scene::client;

/// What the manager is told, one message after the other.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let socket = UnixDatagram::bind(lab.scratch().path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { socket }
    }

    /// What runs the daemon for it.
    fn wrapper(lab: &Lab) -> [String; 3] {
        let socket = lab.scratch().path().join("notify");
        [
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", socket.display()),
            "WATCHDOG_USEC=600000".to_owned(),
        ]
    }

    /// The next message with this in it.
    fn wait(&self, part: &str) -> String {
        let mut others = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let mut buffer = [0; 4096];
            match self.socket.recv(&mut buffer) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    if text.contains(part) {
                        return text;
                    }
                    others.push(text);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no {part} in {others:?}");
    }
}

#[test]
fn the_manager_is_told() {
    require_root_or_skip!();
    let lab = Lab::new();
    let manager = Manager::new(&lab);
    let wrapper = Manager::wrapper(&lab);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut daemon = Setup::open(&lab).through(&wrapper).start();
    manager.wait("READY=1");
    manager.wait("STATUS=ready; 0 client connections");
    manager.wait("WATCHDOG=1");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let stream = client(&lab).tunnel(&origin.target());
    let server = origin.accept();
    manager.wait("STATUS=ready; 1 client connections");
    daemon.signal(Signal::HUP);
    let reloading = manager.wait("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait("READY=1");
    daemon.signal(Signal::TERM);
    let stopping = manager.wait("STOPPING=1");
    // Twenty seconds for clients, and some to end.
    assert!(
        stopping.contains("EXTEND_TIMEOUT_USEC=30000000"),
        "{stopping}"
    );
    manager.wait("STATUS=draining; 1 client connections");
    manager.wait("WATCHDOG=1");
    stream.shutdown(Shutdown::Write).unwrap();
    drop(server);
    drop(stream);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Opens sockets as a manager does, for whatever runs next: `LISTEN_FDS` from the descriptor 3 on.
const PASS: &str = "
import os, socket, sys
count = int(sys.argv[1])
for index, place in enumerate(sys.argv[2:2 + count]):
    host, port = place.rsplit(':', 1)
    listener = socket.create_server((host, int(port)))
    os.dup2(listener.fileno(), 3 + index)
    os.set_inheritable(3 + index, True)
    if listener.fileno() != 3 + index: listener.close()
    else: listener.detach()
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
";

#[test]
fn passed_sockets_are_served() {
    require_root_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let lab = Lab::new();
    // They are what there is, where nobody says where to listen.
    let daemon = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3128"])
        .option("--allow-client", "10.77.1.0/24")
        .option("--allow-destination", "10.77.2.1")
        .option("--allow-port", "1-65535")
        .start();
    assert_eq!(daemon.listening(), [Family::V4.proxy()]);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).tunnel(&origin.target());
    let mut server = origin.accept();
    stream.write_all(b"x").unwrap();
    server.write_all(b"y").unwrap();
    daemon.wait_said("was passed by the service manager", 1);
    drop(daemon);

    // One of two that are wanted; the other is opened.
    let daemon = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3128"])
        .option("--listen", "10.77.1.2:3129")
        .option("--listen", "10.77.1.2:3128")
        .listeners(2)
        .start();
    for port in [3128, 3129] {
        let address = (Family::V4.proxy().ip(), port);
        let connected = lab.client.run_in(|| TcpStream::connect(address));
        assert!(connected.is_ok(), "{port}: {connected:?}");
    }
    drop(daemon);

    let output = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3130"])
        .option("--listen", "10.77.1.2:3128")
        .run_to_end();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("10.77.1.2:3130 was passed"), "{said}");
}
