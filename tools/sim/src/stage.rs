//! A device without a cloud, on a stage: the real daemons in a throw-away folder, all of one user,
//! with a puppet for each kind of caller.
//!
//! As root the daemons and puppets get a user number of their own, so that nothing here depends on
//! being root but `warden`. Puppets ([`crate::puppet`]) connect to a listener of ours; what they are
//! told to send comes from a process of the host, from a module, or from the agent. Conformance
//! and bench run on it; it never reaches beyond loopback.
#![expect(
    clippy::disallowed_methods,
    reason = "builds, starts and removes a throw-away device"
)]

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use contract::audit::{hash, hex};
use rustix::process::{Pid, Signal, kill_process};

use crate::puppet::{Hello, Puppet};

/// Any error that keeps a stage from standing.
pub type Failure = Box<dyn std::error::Error>;

/// The daemons, in the order of their start.
pub const DAEMONS: [&str; 4] = ["keyd", "identityd", "warden", "runtimed"];
/// The module that puppets play besides the agent.
pub const MODULE: &str = "sensor";
/// A user number for daemons and puppets where we are root; the next one is a stranger's.
const UID: u32 = 0x6f70_0000;
/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a stage is set up.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the programs are.
    pub programs: PathBuf,
    /// The `[provisioning]` table of `identityd`.
    pub provisioning: String,
    /// More of `keyd`'s configuration, before its tables.
    pub keyd: String,
    /// Whether modules run: the puppets of module and agent.
    pub modules: bool,
    /// Environment of the module besides what makes it a puppet.
    pub module_env: Vec<(String, String)>,
    /// A module identity that the device remembers of its hub.
    pub remembered: Option<String>,
    /// Connections a user may have at a time on each socket.
    pub connections: usize,
}

impl Plan {
    /// A device that is not provisioned, with modules.
    #[must_use]
    pub fn unprovisioned(programs: PathBuf) -> Self {
        Self {
            programs,
            provisioning: "source = \"none\"\n".to_owned(),
            keyd: String::new(),
            modules: true,
            module_env: Vec::new(),
            remembered: None,
            connections: 64,
        }
    }

    /// A device that the configuration provisions at a hub where nobody answers.
    #[must_use]
    pub fn manual(programs: PathBuf) -> Self {
        Self {
            provisioning: "source = \"manual\"\niothub_hostname = \"localhost:1\"\n\
                           device_id = \"stage-1\"\n[provisioning.authentication]\n\
                           method = \"sas\"\ndevice_id_pk = \"device-id\"\n"
                .to_owned(),
            modules: false,
            ..Self::unprovisioned(programs)
        }
    }
}

/// A running device.
pub struct Stage {
    folder: PathBuf,
    uid: u32,
    gid: u32,
    plan: Plan,
    daemons: Vec<(&'static str, Child)>,
    others: Vec<Child>,
    listener: TcpListener,
}

impl Stage {
    /// Builds the folder and starts the daemons; returns when the last one listens.
    ///
    /// # Errors
    /// [`Failure`]; what was started is ended.
    pub fn start(plan: Plan) -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("holdfast-stage-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o755).create(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let root = rustix::process::geteuid().is_root();
        let (uid, gid) = if root {
            (UID, UID)
        } else {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            (uid.as_raw(), gid.as_raw())
        };
        let mut stage = Self {
            folder,
            uid,
            gid,
            plan,
            daemons: Vec::new(),
            others: Vec::new(),
            listener: TcpListener::bind(("127.0.0.1", 0))?,
        };
        stage.folders()?;
        stage.configure()?;
        for name in DAEMONS {
            if stage.plan.modules || name == "keyd" || name == "identityd" {
                stage.start_daemon(name)?;
            }
        }
        Ok(stage)
    }

    /// The user of daemons and puppets.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.join(below)
    }

    /// The socket of an API, as a process of the host finds it.
    #[must_use]
    pub fn socket(&self, api: &str) -> PathBuf {
        match api {
            "key" => self.path("run/keyd.sock"),
            "certificate" => self.path("run/certd.sock"),
            "identity" => self.path("run/identityd.sock"),
            "management" => self.path("run/mgmt.sock"),
            _ => self.path(&format!("runtimed/mnt/{MODULE}/workload.sock")),
        }
    }

    /// A daemon's process.
    #[must_use]
    pub fn pid(&self, daemon: &str) -> Option<u32> {
        let found = self.daemons.iter().find(|(name, _)| *name == daemon);
        found.map(|(_, child)| child.id())
    }

    /// What a daemon or module has written so far.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let own = self.path(&format!("log/{name}.log"));
        let module = self.path(&format!("runtimed/logs/{name}.log"));
        fs::read_to_string(own)
            .or_else(|_| fs::read_to_string(module))
            .unwrap_or_default()
    }

    /// A puppet outside, of the device's user or of another.
    ///
    /// # Errors
    /// [`Failure`]; only root has another user.
    pub fn host_puppet(&mut self, stranger: bool) -> Result<Puppet, Failure> {
        let mut command = Command::new(self.path("bin/holdfast-bench-module"));
        command
            .env_clear()
            .env(
                "PUPPET_PORT",
                self.listener.local_addr()?.port().to_string(),
            )
            .stdin(Stdio::null())
            .stdout(File::create(self.path("log/puppet.log"))?)
            .current_dir("/");
        let stranger = u32::from(stranger);
        self.as_user(&mut command, stranger);
        self.others.push(command.spawn()?);
        Ok(self.accept()?.1)
    }

    /// The puppets that `runtimed` has started: module and agent.
    ///
    /// # Errors
    /// [`Failure`] when they do not come.
    pub fn module_puppets(&self) -> Result<[(Hello, Puppet); 2], Failure> {
        let one = self.accept().map_err(|e| self.told(e))?;
        let other = self.accept().map_err(|e| self.told(e))?;
        if one.0.module == MODULE {
            Ok([one, other])
        } else {
            Ok([other, one])
        }
    }

    fn told(&self, error: Failure) -> Failure {
        let logs = ["runtimed", MODULE, "warden"].map(|name| self.log(name));
        format!("{error}; the logs: {}", logs.join("\n")).into()
    }

    fn accept(&self) -> Result<(Hello, Puppet), Failure> {
        let deadline = Instant::now() + PATIENCE;
        self.listener.set_nonblocking(true)?;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(PATIENCE * 3))?;
                    return Ok(Puppet::meet(BufReader::new(stream))?);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err("no puppet came".into());
                    }
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn as_user(&self, command: &mut Command, plus: u32) {
        if rustix::process::geteuid().is_root() {
            command.uid(self.uid + plus).gid(self.gid);
        }
    }

    /// Starts a daemon and waits for its socket; how long that took.
    ///
    /// # Errors
    /// [`Failure`] with what it wrote.
    pub fn start_daemon(&mut self, name: &'static str) -> Result<Duration, Failure> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path(&format!("log/{name}.log")))?;
        let config = |file: &str| self.path("config").join(file).display().to_string();
        let mut command = Command::new(self.path("bin").join(format!("holdfast-{name}")));
        if name == "identityd" {
            command.args(["--certificates", &config("certd.toml")]);
        }
        command
            .args(["--config", &config(&format!("{name}.toml"))])
            .args(["--parent", &std::process::id().to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if name != "warden" {
            self.as_user(&mut command, 0);
        }
        let socket = self.path("run").join(match name {
            "keyd" => "keyd.sock",
            "identityd" => "identityd.sock",
            "runtimed" => "mgmt.sock",
            _ => "../run-warden/warden.sock",
        });
        let begin = Instant::now();
        let mut child = command.spawn()?;
        // Warden's socket speaks packets; it is renamed into place once it listens.
        let listens = || {
            (name == "warden" && socket.exists())
                || std::os::unix::net::UnixStream::connect(&socket).is_ok()
        };
        while !listens() {
            if let Some(status) = child.try_wait()? {
                return Err(format!("{name} ended with {status}: {}", self.log(name)).into());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{name} does not listen: {}", self.log(name)).into());
            }
            std::thread::park_timeout(Duration::from_micros(50));
        }
        let took = begin.elapsed();
        self.daemons.push((name, child));
        Ok(took)
    }

    /// Ends a daemon and waits for its end.
    pub fn stop_daemon(&mut self, name: &str) {
        while let Some(at) = self.daemons.iter().position(|(one, _)| *one == name) {
            end(&mut self.daemons.remove(at).1);
        }
    }

    fn folders(&self) -> io::Result<()> {
        for (name, private) in [
            ("log", false),
            ("run", false),
            ("keyd", true),
            ("certd", true),
            ("identityd", true),
            ("runtimed", false),
        ] {
            let mode = if private { 0o700 } else { 0o755 };
            self.folder(name, mode)?;
            self.give(name)?;
        }
        for name in ["run-warden", "grants", "bin", "config"] {
            self.folder(name, 0o755)?;
        }
        for name in ["keyd", "identityd", "warden", "runtimed", "bench-module"] {
            let name = format!("holdfast-{name}");
            let to = self.path("bin").join(&name);
            fs::copy(self.plan.programs.join(&name), &to).map_err(|cause| {
                let from = self.plan.programs.join(&name);
                io::Error::other(format!("{} is not built: {cause}", from.display()))
            })?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
            // Pages of a program that are not yet on disk would count as its own dirty memory.
            File::open(&to)?.sync_all()?;
        }
        Ok(())
    }

    fn folder(&self, name: &str, mode: u32) -> io::Result<()> {
        fs::create_dir(self.path(name))?;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode))
    }

    fn give(&self, name: &str) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            chown(self.path(name), Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, mode: u32, text: &[u8]) -> io::Result<()> {
        fs::write(self.path(name), text)?;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode))
    }

    fn configure(&self) -> Result<(), Failure> {
        let (uid, most) = (self.uid, self.plan.connections);
        let run = |name: &str| format!("unix://{}", self.path("run").join(name).display());
        let home = |name: &str| self.path(name);
        self.write("keyd/device-id", 0o600, &[7; 32])?;
        self.give("keyd/device-id")?;
        fs::create_dir(self.path("keyd/state"))?;
        fs::set_permissions(self.path("keyd/state"), fs::Permissions::from_mode(0o700))?;
        self.give("keyd/state")?;
        let all = "\"sign-token\", \"sign-cert\", \"tls\", \"derive\", \"encrypt\", \"decrypt\"";
        let keyd = format!(
            "max_requests = {most}\nmax_connections = {most}\n{}\
             [aziot_keys]\nhomedir_path = {:?}\n[endpoints]\naziot_keyd = {:?}\n\
             [preloaded_keys]\ndevice-id = \"file://{}\"\n\
             [[principal]]\nuid = {uid}\npurposes = [{all}, \"export-derived\"]\n\
             keys = [\"aziot_*\", \"c-*\"]\n\
             [[principal]]\nuid = {uid}\npurposes = [{all}]\n\
             keys = [\"device-id\", \"aziot-edged-ca\", \"iotedge_*\", \"holdfast_*\", \"d-*\"]\n",
            self.plan.keyd,
            home("keyd/state"),
            run("keyd.sock"),
            self.path("keyd/device-id").display(),
        );
        self.write("config/keyd.toml", 0o644, keyd.as_bytes())?;
        let endpoints = format!(
            "[endpoints]\naziot_keyd = {:?}\naziot_certd = {:?}\naziot_identityd = {:?}\n",
            run("keyd.sock"),
            run("certd.sock"),
            run("identityd.sock")
        );
        let certd = format!(
            "homedir_path = {:?}\nmax_requests = {most}\n\
             issuer_certs = [\"aziot-edged-ca\", \"c-ca\"]\n\
             [preloaded_certs]\naziot-edged-trust-bundle = [\"aziot-edged-ca\"]\n\
             c-bundle = [\"c-ca\", \"c-missing\"]\nc-empty = [\"c-missing\"]\n\
             [cert_issuance.aziot-edged-ca]\nmethod = \"self_signed\"\nexpiry_days = 90\n\
             [cert_issuance.c-ca]\nmethod = \"self_signed\"\nexpiry_days = 90\n\
             [[principal]]\nuid = {uid}\n\
             certs = [\"aziot-edged-ca\", \"aziot-edged/module/*\", \"c-*\"]\n{endpoints}",
            home("certd")
        );
        self.write("config/certd.toml", 0o644, certd.as_bytes())?;
        let identityd = format!(
            "hostname = \"stage\"\nhomedir = {:?}\nmax_requests = {most}\ncloud_retries = 0\n\
             prefer_module_identity_cache = true\n\
             [provisioning]\n{}{endpoints}\
             [[principal]]\nuid = {uid}\nname = \"stage\"\n",
            home("identityd"),
            self.plan.provisioning
        );
        self.write("config/identityd.toml", 0o644, identityd.as_bytes())?;
        if let Some(module) = &self.plan.remembered {
            self.remember(module)?;
        }
        self.runtimed(&run)
    }

    /// Leaves a record of a module identity, in the compatible form (identity-service.md 4.7).
    fn remember(&self, module: &str) -> Result<(), Failure> {
        let sum = |text: &str| hex(&hash(text.as_bytes()));
        let folder = format!(
            "identityd/modules/{}-{}",
            sum("localhost:1"),
            sum("stage-1")
        );
        for name in ["identityd/modules", &folder] {
            self.folder(name, 0o700)?;
            self.give(name)?;
        }
        let name = format!("{folder}/{module}-{}", sum(module));
        let text =
            format!("{{\"moduleId\":{module:?},\"deviceId\":\"stage-1\",\"generationId\":\"1\"}}");
        self.write(&name, 0o600, text.as_bytes())?;
        Ok(self.give(&name)?)
    }

    fn runtimed(&self, run: &dyn Fn(&str) -> String) -> Result<(), Failure> {
        let (uid, gid, most) = (self.uid, self.gid, self.plan.connections);
        let port = self.listener.local_addr()?.port();
        let more: String = self
            .plan
            .module_env
            .iter()
            .map(|(name, value)| format!("{name} = {value:?}\n"))
            .collect();
        let runtimed = format!(
            "hostname = \"stage\"\nhomedir = {:?}\noperators = [{uid}]\n\
             [edge_ca]\nalgorithms = \"ec-p256\"\n\
             [agent]\nname = \"edgeAgent\"\ntype = \"host\"\nconfig = {{ image = \"edgeAgent\" }}\n\
             [agent.env]\nPUPPET_PORT = \"{port}\"\n\
             [[module]]\nname = \"{MODULE}\"\nimage = \"{MODULE}\"\n\
             [module.env]\nPUPPET_PORT = \"{port}\"\n{more}\
             [listen]\nmanagement_uri = {:?}\n\
             [iotedge_max_requests]\nmanagement = {most}\nworkload = {most}\n\
             [endpoints]\naziot_keyd_url = {:?}\naziot_certd_url = {:?}\n\
             aziot_identityd_url = {:?}\n\
             [warden]\nsocket = \"unix://{}\"\n",
            self.path("runtimed"),
            run("mgmt.sock"),
            run("keyd.sock"),
            run("certd.sock"),
            run("identityd.sock"),
            self.path("run-warden/warden.sock").display(),
        );
        self.write("config/runtimed.toml", 0o644, runtimed.as_bytes())?;
        let group = self.folder.file_name().unwrap_or_default();
        let warden = format!(
            "socket = {:?}\nallowed_uids = [{uid}]\ngrants = {:?}\ncgroup_parent = {group:?}\n\
             minimum_uid = {}\n",
            self.path("run-warden/warden.sock"),
            self.path("grants"),
            uid.clamp(1, 1000),
        );
        self.write("config/warden.toml", 0o600, warden.as_bytes())?;
        let program = self.path("bin/holdfast-bench-module");
        let digest = hex(&hash(&fs::read(&program)?));
        for (plus, name) in [(2, MODULE), (3, "edgeAgent"), (4, "spare")] {
            let root = rustix::process::geteuid().is_root();
            let (uid, gid) = if root {
                (uid + plus, uid + plus)
            } else {
                (uid, gid)
            };
            let grant = format!(
                "executable = {program:?}\nsha256 = \"{digest}\"\nuid = {uid}\ngid = {gid}\n\
                 network = \"host\"\n"
            );
            self.write(&format!("grants/{name}.toml"), 0o644, grant.as_bytes())?;
        }
        Ok(())
    }
}

/// Asks a process to end, and makes it after a while.
fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It is ours and not reaped, so the number is still its own.
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for mut child in self.others.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // runtimed before warden, warden before what it stands on.
        for (_, mut child) in self.daemons.drain(..).rev() {
            end(&mut child);
        }
        let _ = fs::remove_dir_all(&self.folder);
        let name = self.folder.file_name().unwrap_or_default();
        for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let parent = Path::new(place).join(name);
            for group in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Where the programs of this build are: beside the one that runs.
///
/// # Errors
/// When this program's place cannot be told.
pub fn programs() -> io::Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}
