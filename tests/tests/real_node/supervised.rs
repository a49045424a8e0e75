//! `xskiff run` under a service manager, which a socket plays: what it is told, and that its watchdog
//! follows the workers alone.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use xskiff::lab::Process;
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bare::Bare;
use crate::followed::ApiServer;
use crate::world::PATIENCE;

/// The watchdog's limit, in microseconds.
const LIMIT_US: u64 = 400_000;
/// Long enough that the watchdog would have ended a process that does not feed it, twice.
const TWO_LIMITS: Duration = Duration::from_micros(2 * LIMIT_US);

struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn listen(bare: &Bare) -> Self {
        let path = bare.directory("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Self { socket, path }
    }

    /// Starts a node that it supervises.
    fn spawn(&self, bare: &Bare, configuration: &str, more: &[&str]) -> Process {
        let [socket, limit] =
            [format!("NOTIFY_SOCKET={}", self.path), format!("WATCHDOG_USEC={LIMIT_US}")];
        bare.spawn_with(&["env", &socket, &limit], configuration, more)
    }

    /// The next message that has one of `lines` in it.
    fn expect(&self, process: &Process, lines: &[&str]) -> String {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(text) = self.next(Duration::from_millis(200))
                && text.lines().any(|line| lines.iter().any(|wanted| line.starts_with(wanted)))
            {
                return text;
            }
        }
        panic!("{lines:?} never came: {}", process.log_tail());
    }

    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).expect("a limit");
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// How often the watchdog is fed from now on, within twice its limit.
    fn feeds(&self) -> usize {
        while self.next(Duration::from_millis(1)).is_some() {}
        let until = Instant::now() + TWO_LIMITS;
        let mut feeds = 0;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let text = self.next(left.max(Duration::from_millis(1))).unwrap_or_default();
            feeds += text.lines().filter(|line| *line == "WATCHDOG=1").count();
        }
        feeds
    }
}

/// The thread of a process that has this name.
fn thread(process: &Process, name: &str) -> Pid {
    let tasks = format!("/proc/{}/task", process.id());
    let found = std::fs::read_dir(tasks).expect("it runs").find_map(|task| {
        let path = task.expect("a task").path();
        let is_it = std::fs::read_to_string(path.join("comm")).is_ok_and(|own| own.trim() == name);
        is_it.then(|| path.file_name()?.to_str()?.parse().ok()).flatten()
    });
    Pid::from_raw(found.unwrap_or_else(|| panic!("there is no thread {name}")))
}

/// Stops one thread, all others run on, as long as `act` takes.
fn while_stopped<T>(thread: Pid, act: impl FnOnce() -> T) -> T {
    ptrace::seize(thread, ptrace::Options::empty()).expect("traced");
    ptrace::interrupt(thread).expect("interrupted");
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stands still");
    let result = act();
    ptrace::detach(thread, None).expect("it goes on");
    result
}

#[test]
fn the_service_manager_hears_of_readiness_a_new_configuration_and_the_end() {
    if !root_or_skip("a service manager") {
        return;
    }
    let bare = Bare::new("notify");
    let manager = Manager::listen(&bare);
    let run = bare.directory("run");
    let configuration = bare.configuration("up0", &run, "timeouts: {udp_seconds: 31}");
    let process = manager.spawn(&bare, &configuration, &[]);
    let ready = manager.expect(&process, &["READY=1"]);
    assert!(ready.contains("STATUS=1 worker serves 2 ports"), "{ready}");
    // At once: whoever is started after this unit finds a node that serves.
    let socket = format!("{run}/admin.sock");
    bare.ready(&process, &socket);

    bare.configuration("up0", &run, "timeouts: {udp_seconds: 32}");
    let reloading = manager.expect(&process, &["RELOADING=1", "READY=1"]);
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    manager.expect(&process, &["READY=1"]);

    process.signal(Signal::SIGTERM).expect("told");
    manager.expect(&process, &["STOPPING=1"]);
    assert_eq!(process.wait(PATIENCE).expect("ended").code(), Some(0));
}

/// A predecessor that ended was the service's end to its manager, which ended the successor with it.
#[test]
fn the_service_manager_is_told_whom_to_follow_when_a_process_takes_over() {
    if !root_or_skip("a service manager and a successor") {
        return;
    }
    let bare = Bare::new("mainpid");
    let manager = Manager::listen(&bare);
    let run = bare.directory("run");
    let configuration = bare.configuration("up0", &run, "");
    let first = manager.spawn(&bare, &configuration, &[]);
    manager.expect(&first, &["READY=1"]);
    let second = manager.spawn(&bare, &configuration, &["--take-over"]);
    let told = manager.expect(&first, &["MAINPID=", "STOPPING=1", "READY=1"]);
    assert_eq!(told.trim(), format!("MAINPID={}", second.id()));
    let ready = manager.expect(&second, &["STOPPING=1", "READY=1"]);
    assert!(ready.starts_with("READY=1"), "{ready}");
    assert_eq!(first.wait(PATIENCE).expect("ended").code(), Some(0));
    assert!(manager.feeds() >= 4, "the watchdog follows the second: {}", second.log_tail());
    second.signal(Signal::SIGTERM).expect("told");
    manager.expect(&second, &["STOPPING=1"]);
    assert_eq!(second.wait(PATIENCE).expect("ended").code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_while_workers_tick_whatever_control_and_api_servers_do() {
    if !root_or_skip("a watchdog") {
        return;
    }
    let bare = Bare::new("watchdog");
    let manager = Manager::listen(&bare);
    let server = ApiServer::start(&bare.node, Setup::default());
    let state = bare.directory("state");
    // Its worker sleeps most of the time, and is stopped in its sleep.
    let more = format!("stall: {{after_ms: 100}}\nkubernetes: {{state_directory: {state}}}");
    let configuration = bare.configuration("up0", &bare.directory("run"), &more);
    let process = manager.spawn(&bare, &configuration, &["--api-server", &server.url]);
    manager.expect(&process, &["READY=1"]);
    assert!(manager.feeds() >= 4, "{}", process.log_tail());

    server.kill();
    assert!(manager.feeds() >= 4, "without an API server: {}", process.log_tail());
    let control = thread(&process, "xskiff");
    let fed = while_stopped(control, || manager.feeds());
    assert!(fed >= 4, "while the control thread hangs: {}", process.log_tail());

    let worker = thread(&process, "worker-0");
    let fed = while_stopped(worker, || {
        std::thread::sleep(Duration::from_millis(300));
        manager.feeds()
    });
    assert_eq!(fed, 0, "while a worker hangs: {}", process.log_tail());
    assert!(manager.feeds() >= 4, "once it is back: {}", process.log_tail());
    process.signal(Signal::SIGTERM).expect("told");
    assert_eq!(process.wait(PATIENCE).expect("ended").code(), Some(0));
}

#[test]
fn a_node_that_waits_for_the_cluster_is_not_ready_and_says_so() {
    if !root_or_skip("a service manager that waits") {
        return;
    }
    let bare = Bare::new("notready");
    let manager = Manager::listen(&bare);
    let server = ApiServer::start(&bare.node, Setup::default());
    server.kill();
    let state = bare.directory("state");
    let more = format!("kubernetes: {{state_directory: {state}}}");
    let configuration = bare.configuration("up0", &bare.directory("run"), &more);
    let process = manager.spawn(&bare, &configuration, &["--api-server", &server.url]);
    let said = manager.expect(&process, &["STATUS=", "READY=1"]);
    assert!(said.starts_with("STATUS=waiting for the whole cluster"), "{said}");
    server.come_back();
    manager.expect(&process, &["READY=1"]);
}
