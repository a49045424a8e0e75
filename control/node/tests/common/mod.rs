//! Network namespaces of a test's own: a thread that entered one, and lives as long as it.

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// Whether tests that need root may run. Panics when they should but cannot.
pub fn may_run(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    if std::env::var("XSKIFF_SKIP_ROOT_TESTS").as_deref() == Ok("1") {
        eprintln!("SKIPPED: {test} needs root, and XSKIFF_SKIP_ROOT_TESTS=1 is set");
        return false;
    }
    panic!("{test} needs root: run as root, or set XSKIFF_SKIP_ROOT_TESTS=1 to leave it out");
}

/// A network namespace without a name, gone when this is dropped.
pub struct Namespace {
    /// The thread's id, by which the namespace is referred to.
    tid: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Enters a new namespace in a thread of its own.
    pub fn new() -> Self {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter_new_namespace();
            tell.send(nix::unistd::gettid().as_raw()).expect("the test waits for this");
            for job in receiver {
                job();
            }
        });
        let tid = told.recv().expect("the namespace's thread begins");
        let namespace = Self { tid, jobs: Some(jobs), thread: Some(thread) };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `body` in the namespace and gives its result; a panic in it is the test's.
    pub fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = mpsc::channel();
        let job: Job = Box::new(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let _ = give.send(result);
        });
        self.jobs.as_ref().expect("not dropped").send(job).expect("the thread lives");
        match take.recv().expect("the thread answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs an asynchronous `body` in the namespace, on a runtime of the node's kind.
    pub fn block_on<T, F>(&self, body: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(body())
        })
    }

    /// Runs `ip ARGUMENTS` in the namespace and gives its output.
    pub fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments))
    }

    /// What `ip link set dev X netns` takes.
    pub fn id(&self) -> i32 {
        self.tid
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A network namespace and, in a mount namespace of its own, the sysfs that shows it.
fn enter_new_namespace() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("sysfs");
}

/// A node with an uplink `up0` to a gateway in a namespace of its own.
pub fn node_and_gateway() -> (Namespace, Namespace) {
    let (node, gateway) = (Namespace::new(), Namespace::new());
    node.ip("link add up0 type veth peer name gw0");
    node.ip(&format!("link set gw0 netns {}", gateway.id()));
    gateway.ip("address add 192.0.2.1/24 dev gw0");
    gateway.ip("address add 2001:db8::1/64 dev gw0 nodad");
    gateway.ip("link set gw0 up");
    node.ip("address add 192.0.2.2/24 dev up0");
    node.ip("address add 2001:db8::2/64 dev up0 nodad");
    node.ip("link set up0 up");
    // The kernel settles a link's state in the background.
    let settled = node.run(|| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            ip("-brief link show up0").split_whitespace().nth(1) == Some("UP")
        })
    });
    assert!(settled, "up0 never came up");
    node.ip("route add default via 192.0.2.1");
    node.ip("route add default via 2001:db8::1");
    (node, gateway)
}

/// Runs `ip ARGUMENTS` in this thread's namespace.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
