//! `holdfast quickstart`: a hub and a device on this machine, and one line per thing proved.
//!
//! Every step uses the product as a user would: the hub's API, the device's sockets, the module's
//! own words. A step that fails says why and ends the run. Nothing is left behind.

mod hub;
mod process;
mod settings;
mod watch;
mod world;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::api::certificate::Read as ReadCertificate;
use contract::api::identity::{Device, DeviceRequest, Identity};
use contract::api::management::{ListModules, ModuleDetails, State};
use contract::api::workload;
use contract::bytes::Bytes;
use contract::endpoint::Empty;
use contract::names::{CertId, Generation, ModuleName};
use local::client::{CallError, Client};
use serde::Deserialize;
use serde_json::{Value, json};

use self::hub::Hub;
use self::process::{Daemon, Program};
use self::settings::{DEVICE, GROUP, HubFacts, MODULES, Paths};
use self::world::World;
use crate::output::{self, Exit, Output};

type Failure = Box<dyn std::error::Error>;

/// Longest wait for one step.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Print one JSON object per step.
    #[arg(long)]
    json: bool,
    /// Leave everything running until interrupted, and keep the folder.
    #[arg(long)]
    keep: bool,
    /// End each daemon by force once while the run goes on, and show that it comes back.
    #[arg(long)]
    crash: bool,
}

/// Runs it.
#[must_use]
pub fn run(mut options: Options, form: Output) -> Exit {
    options.json |= form == Output::Json;
    if let Err(error) = local::os::process::block_stop_signals() {
        output::complain(&error);
        return Exit::Problem;
    }
    for name in world::remove_leftovers().unwrap_or_default() {
        report(options, "cleanup", Ok(&json!({ "removed": name })), None);
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => {
            output::complain(&error);
            return Exit::Problem;
        }
    };
    let run = Arc::new(Mutex::new(Some(Run {
        daemons: Vec::new(),
        world,
    })));
    interrupt(&run);
    let started = Instant::now();
    let mut steps = Steps {
        options,
        run: &run,
        hub: None,
        facts: None,
        failed: false,
    };
    steps.all();
    let failed = steps.failed;
    let took = json!({ "seconds": (started.elapsed().as_millis() as f64) / 1000.0 });
    if options.keep && !failed {
        report(options, "done", Ok(&took), None);
        wait_for_the_end();
    }
    // Everything ends here, before the last line says so, and under the lock: an interrupt waits for
    // it, and if it was first, we wait for the interrupt.
    let mut living = run.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(ended) = living.take() else {
        drop(living);
        wait_for_the_end()
    };
    drop(ended);
    drop(living);
    report(
        options,
        "done",
        if failed {
            Err("a step failed")
        } else {
            Ok(&took)
        },
        None,
    );
    if failed { Exit::Problem } else { Exit::Fine }
}

/// What lives during a run. Dropping it ends the daemons, last one first, then the folder.
struct Run {
    daemons: Vec<(&'static str, Daemon)>,
    world: World,
}

impl Drop for Run {
    fn drop(&mut self) {
        while let Some((_, mut daemon)) = self.daemons.pop() {
            daemon.stop();
        }
    }
}

/// Waits while somebody else ends the process.
fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

/// Ends the run when asked to: what lives is taken out and dropped, whoever else waits for it.
fn interrupt(run: &Arc<Mutex<Option<Run>>>) {
    let run = Arc::clone(run);
    let watch = std::thread::Builder::new().spawn(move || {
        local::os::process::wait_for_stop();
        drop(run.lock().unwrap_or_else(PoisonError::into_inner).take());
        std::process::exit(130);
    });
    if let Err(error) = watch {
        output::complain(&error);
    }
}

fn report(options: Options, step: &str, result: Result<&Value, &str>, note: Option<&str>) {
    let ok = result.is_ok();
    let mut detail = result.map_or_else(|why| json!({ "why": why }), Clone::clone);
    if let (Some(note), Value::Object(members)) = (note, &mut detail) {
        members.insert("note".to_owned(), json!(note));
    }
    if options.json {
        output::json(&json!({ "step": step, "ok": ok, "detail": detail }));
        return;
    }
    let mark = if ok { "ok  " } else { "FAIL" };
    let text = match &detail {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}: {text}"),
                other => format!("{name}: {other}"),
            })
            .collect::<Vec<_>>()
            .join("; "),
        other => other.to_string(),
    };
    output::line(&format!("{mark} {step:<20} {text}"));
}

struct Steps<'a> {
    options: Options,
    run: &'a Mutex<Option<Run>>,
    hub: Option<Hub>,
    facts: Option<HubFacts>,
    failed: bool,
}

/// Content of the hub's `endpoints.json`.
#[derive(Deserialize)]
struct Endpoints {
    https: std::net::SocketAddr,
    mqtt: std::net::SocketAddr,
}

impl Steps<'_> {
    fn all(&mut self) {
        self.step("hub.start", Self::start_hub);
        self.step("keyd.start", Self::start_keyd);
        self.step("identityd.start", Self::start_identityd);
        self.step("device.enrolled", Self::enrolled);
        self.step("warden.start", Self::start_warden);
        self.step("runtimed.start", Self::start_runtimed);
        self.step("edge-ca.issued", Self::edge_ca);
        self.step("agent.attested", Self::agent);
        for name in &MODULES[1..] {
            self.step("module.started", |steps| steps.started(name));
        }
        self.step("module.signature", Self::signature);
        self.step("module.certificate", Self::certificate);
        self.step("modules.mtls", Self::mutual);
        self.step("module.message", Self::message);
        self.step("impostor.refused", Self::impostor);
        if self.options.crash {
            for name in ["keyd", "identityd", "runtimed", "warden", "hub"] {
                self.step("daemon.recovered", |steps| steps.recovered(name));
            }
        }
        self.step("audit.verified", Self::audited);
    }

    fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<Value, Failure>) {
        if self.failed {
            return;
        }
        match work(self) {
            Ok(detail) => report(self.options, name, Ok(&detail), None),
            Err(error) => {
                self.failed = true;
                let mut why = error.to_string();
                let mut next = error.source();
                while let Some(cause) = next {
                    why.push_str(&format!(": {cause}"));
                    next = cause.source();
                }
                let logs = self
                    .with(|run| Ok(last_words(&run.world)))
                    .unwrap_or_default();
                report(self.options, name, Err(&why), None);
                for line in logs {
                    if !self.options.json {
                        output::line(&format!("     {line}"));
                    }
                }
            }
        }
    }

    /// Something with what lives. An interrupted run has nothing any more, and who ended it ends the
    /// process too.
    fn with<T>(&self, work: impl FnOnce(&mut Run) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        match run.as_mut() {
            Some(run) => work(run),
            None => {
                drop(run);
                wait_for_the_end()
            }
        }
    }

    fn paths(&self) -> Result<Paths, Failure> {
        self.with(|run| Ok(Paths::of(&run.world)))
    }

    fn folder(&self) -> Result<PathBuf, Failure> {
        self.with(|run| Ok(run.world.folder.clone()))
    }

    fn start(
        &self,
        name: &'static str,
        arguments: Vec<String>,
        user: impl FnOnce(&World) -> Option<(u32, u32)>,
    ) -> Result<(), Failure> {
        self.with(|run| {
            let program = Program {
                name,
                path: program(&format!("holdfast-{name}"))?,
                arguments,
                user: user(&run.world).filter(|_| run.world.users.separate),
                log: run.world.path(&format!("log/{name}.log")),
            };
            run.daemons.push((name, Daemon::start(program)?));
            Ok(())
        })
    }

    fn start_hub(&mut self) -> Result<Value, Failure> {
        let folder = self.folder()?;
        let begun = Instant::now();
        self.with(|run| {
            settings::folders(&run.world)?;
            let uid = run.world.users.hub;
            let state = run.world.dir("hub", uid, 0o700)?;
            let mut command = command(&program("holdfast-hub")?);
            command
                .args(["init", "--state"])
                .arg(&state)
                .args(["--hostname", "localhost"]);
            if run.world.users.separate {
                use std::os::unix::process::CommandExt as _;
                command.uid(uid).gid(uid);
            }
            let output = command.output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            Ok(())
        })?;
        let config = folder.join("hub/hub.toml");
        fix_ports(&config)?;
        let words = vec!["--config".to_owned(), config.display().to_string()];
        self.start("hub", words, |world| {
            Some((world.users.hub, world.users.hub))
        })?;
        let file = folder.join("hub/endpoints.json");
        let endpoints: Endpoints = watch::until(&folder.join("hub"), PATIENCE, || {
            let text = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            serde_json::from_slice(&text).map_err(|error| error.to_string())
        })?;
        let roots = folder.join("hub-roots.pem");
        fs::copy(folder.join("hub/ca.pem"), &roots)?;
        readable(&roots)?;
        let hub = Hub::new(&config, &roots, endpoints.https.port())?;
        let facts = HubFacts {
            https: endpoints.https.port(),
            mqtt: endpoints.mqtt.port(),
            scope: hub::scope(&config)?,
        };
        let detail = json!({
            "https": format!("localhost:{}", facts.https),
            "mqtt": format!("localhost:{}", facts.mqtt),
            "ms": ms(begun),
        });
        (self.hub, self.facts) = (Some(hub), Some(facts));
        Ok(detail)
    }

    fn start_keyd(&mut self) -> Result<Value, Failure> {
        let device = self.hub()?.enrol(GROUP, DEVICE)?;
        self.with(|run| Ok(settings::keyd(&run.world, &device)?))?;
        let paths = self.paths()?;
        let begun = Instant::now();
        let words = self.config("keyd.toml")?;
        self.start("keyd", words, |world| {
            Some((world.users.keyd, world.users.services))
        })?;
        answers(&paths.keyd)?;
        Ok(json!({ "socket": paths.keyd, "ms": ms(begun) }))
    }

    fn start_identityd(&mut self) -> Result<Value, Failure> {
        let facts = self.facts.as_ref().ok_or("no hub")?;
        self.with(|run| Ok(settings::identityd(&run.world, facts)?))?;
        let paths = self.paths()?;
        let begun = Instant::now();
        let mut words = self.config("identityd.toml")?;
        let certificates = self.folder()?.join("config/certd.toml");
        words.extend([
            "--certificates".to_owned(),
            certificates.display().to_string(),
        ]);
        self.start("identityd", words, |world| {
            Some((world.users.identityd, world.users.services))
        })?;
        answers(&paths.identityd)?;
        answers(&paths.certd)?;
        Ok(json!({ "socket": paths.identityd, "ms": ms(begun) }))
    }

    fn enrolled(&mut self) -> Result<Value, Failure> {
        let paths = self.paths()?;
        let client = Client::new(&paths.identityd);
        let request = DeviceRequest {
            kind: "aziot".to_owned(),
        };
        let folder = self.folder()?.join("identityd");
        let identity = watch::until(&folder, PATIENCE, || {
            client
                .call::<Device>(&(), &request)
                .map_err(|error| error.to_string())
        })?;
        let Identity::Aziot(spec) = identity else {
            return Err("a local identity".into());
        };
        Ok(json!({ "device": spec.device_id, "hub": spec.hub_name, "by": "symmetric group key" }))
    }

    fn start_warden(&mut self) -> Result<Value, Failure> {
        let facts = self.facts.as_ref().ok_or("no hub")?;
        self.with(|run| {
            for name in ["holdfast-agent", "holdfast-sample"] {
                let copy = run.world.path("bin").join(name);
                fs::copy(program(name)?, &copy)?;
                executable(&copy)?;
            }
            Ok(settings::runtimed(&run.world, facts)?)
        })?;
        let paths = self.paths()?;
        let begun = Instant::now();
        self.start("warden", self.config("warden.toml")?, |_| None)?;
        appears(&paths.warden)?;
        let weaker = self.with(|run| Ok(!run.world.users.separate))?;
        let mut detail = json!({ "socket": paths.warden, "ms": ms(begun) });
        if weaker {
            detail["weaker"] =
                json!("one user for all; modules are told apart by their namespaces alone");
        }
        Ok(detail)
    }

    fn start_runtimed(&mut self) -> Result<Value, Failure> {
        let paths = self.paths()?;
        let begun = Instant::now();
        let words = self.config("runtimed.toml")?;
        self.start("runtimed", words, |world| {
            Some((world.users.runtimed, world.users.services))
        })?;
        answers(&paths.management)?;
        Ok(json!({ "socket": paths.management, "ms": ms(begun) }))
    }

    fn edge_ca(&mut self) -> Result<Value, Failure> {
        let paths = self.paths()?;
        let client = Client::new(&paths.certd);
        let id = CertId::new("aziot-edged-ca")?;
        let pem = watch::until(&self.folder()?.join("log"), PATIENCE, || {
            client
                .call::<ReadCertificate>(&id, &Empty)
                .map_err(|error| error.to_string())
        })?
        .pem;
        let facts = certificate(&pem)?;
        if !facts.ca {
            return Err("the Edge CA is no CA".into());
        }
        Ok(json!({ "subject": facts.subject, "until": facts.until }))
    }

    fn agent(&mut self) -> Result<Value, Failure> {
        let facts = self.facts.as_ref().ok_or("no hub")?;
        // Bound and freed: the module binds it again some moments later.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let content = self.with(|run| Ok(settings::deployment(&run.world, facts, port)))?;
        self.hub()?.deploy(DEVICE, &content)?;
        let audit = self.paths()?.runtimed.join("audit");
        let done = watch::until(&audit, PATIENCE, || {
            records(&audit)
                .into_iter()
                .find(|one| one["event"] == "mgmt.done" && one["who"] == "module:edgeAgent")
                .ok_or_else(|| "the agent has managed nothing yet".to_owned())
        })?;
        let agent = self.module(MODULES[0], |_| true)?;
        Ok(json!({
            "module": agent.name,
            "program": agent.config.settings.image_hash,
            "first": done["op"],
        }))
    }

    fn started(&mut self, name: &str) -> Result<Value, Failure> {
        let module = self.module(name, |module| {
            module.status.runtime_status.status == State::Running
        })?;
        Ok(json!({
            "module": name,
            "grant": module.config.settings.image,
            "program": module.config.settings.image_hash,
        }))
    }

    /// Waits until the management API shows a module in the state wanted.
    fn module(
        &self,
        name: &str,
        wanted: impl Fn(&ModuleDetails) -> bool,
    ) -> Result<ModuleDetails, Failure> {
        let paths = self.paths()?;
        let client = Client::new(&paths.management);
        Ok(watch::until(
            &paths.runtimed.join("logs"),
            PATIENCE,
            || {
                let list = client
                    .call::<ListModules>(&(), &Empty)
                    .map_err(|error| error.to_string())?;
                let found = list.modules.into_iter().find(|module| module.name == name);
                found
                    .filter(|module| wanted(module))
                    .ok_or_else(|| format!("{name} does not run"))
            },
        )?)
    }

    fn signature(&mut self) -> Result<Value, Failure> {
        let name = MODULES[1];
        let said = self.said(name, "signature")?;
        let bytes = |member: &str| -> Result<Vec<u8>, Failure> {
            Ok(serde_json::from_value::<Bytes>(said[member].clone())?.0)
        };
        let expected = self.hub()?.module_key(DEVICE, name)?.sign(&bytes("data")?);
        if bytes("digest")? != expected {
            return Err("the signature is not one by the key that the hub has".into());
        }
        Ok(json!({ "module": name, "algorithm": "HMAC-SHA256", "checked": "with the hub's key" }))
    }

    fn certificate(&mut self) -> Result<Value, Failure> {
        let name = MODULES[1];
        let said = self.said(name, "certificate")?;
        let facts = certificate(said["chain"].as_str().ok_or("no chain")?)?;
        if facts.ca || !facts.subject.contains(name) {
            return Err(format!("not the module's certificate: {}", facts.subject).into());
        }
        Ok(
            json!({ "module": name, "subject": facts.subject, "issuer": facts.issuer,
            "until": facts.until }),
        )
    }

    fn mutual(&mut self) -> Result<Value, Failure> {
        let said = self.said(MODULES[2], "mtls")?;
        let answer = said["answer"].as_str().unwrap_or_default();
        if answer != format!("heard hello from {}", MODULES[2]) {
            return Err(format!("an odd answer: {answer}").into());
        }
        Ok(json!({ "client": MODULES[2], "server": said["peer"], "answer": answer }))
    }

    fn message(&mut self) -> Result<Value, Failure> {
        let name = MODULES[2];
        self.said(name, "message")?;
        let hub = self.hub()?;
        let messages = hub.messages()?;
        let from = |message: &&Value| message.to_string().contains(&format!("\"{name}\""));
        let message = messages
            .iter()
            .find(from)
            .ok_or("the message is not at the hub")?;
        Ok(
            json!({ "device": message["deviceId"], "module": message["moduleId"],
            "properties": message["properties"] }),
        )
    }

    /// Asks for a module's signature from outside: as this very process, which for root is the
    /// most that any other process of the host could be.
    fn impostor(&mut self) -> Result<Value, Failure> {
        let name = MODULES[1];
        let paths = self.paths()?;
        let socket = paths.runtimed.join("mnt").join(name).join("workload.sock");
        let target = (ModuleName::new(name)?, Generation::new("1")?);
        let request = workload::SignRequest {
            data: Bytes(b"steal".to_vec()),
            key_id: None,
            algo: None,
        };
        match Client::new(&socket).call::<workload::Sign>(&target, &request) {
            Err(CallError::Refused { status: 403, .. }) => {}
            Ok(_) => return Err("the impostor got a signature".into()),
            Err(other) => return Err(other.into()),
        }
        let audit = paths.runtimed.join("audit");
        let record = watch::until(&audit, PATIENCE, || {
            records(&audit)
                .into_iter()
                .rev()
                .find(|record| record["event"] == "peer.refused")
                .ok_or_else(|| "no audit record of it yet".to_owned())
        })?;
        Ok(json!({ "status": 403, "record": record }))
    }

    /// Ends a daemon by force; it comes back and the modules' signatures go on.
    fn recovered(&mut self, name: &'static str) -> Result<Value, Failure> {
        let before = self.with(|run| {
            let daemon = run
                .daemons
                .iter()
                .find(|(one, _)| *one == name)
                .ok_or("no such daemon")?;
            let pid = daemon
                .1
                .pid()
                .and_then(rustix::process::Pid::from_raw)
                .ok_or("not running")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            Ok(daemon.1.starts())
        })?;
        let folder = self.folder()?;
        let starts = watch::until(&folder.join("log"), PATIENCE, || {
            let starts = self
                .with(|run| {
                    let found = run.daemons.iter().find(|(one, _)| *one == name);
                    Ok(found.map_or(0, |(_, daemon)| daemon.starts()))
                })
                .map_err(|error| error.to_string())?;
            if starts > before {
                Ok(starts)
            } else {
                Err(format!("{name} is not back"))
            }
        })?;
        for module in MODULES {
            self.module(module, |one| {
                one.status.runtime_status.status == State::Running
            })?;
        }
        let paths = self.paths()?;
        let client = Client::new(&paths.identityd);
        let request = DeviceRequest {
            kind: "aziot".to_owned(),
        };
        watch::until(&folder.join("log"), PATIENCE, || {
            client
                .call::<Device>(&(), &request)
                .map_err(|error| error.to_string())
        })?;
        watch::until(&folder.join("log"), PATIENCE, || {
            let key = self
                .hub()
                .and_then(|hub| hub.module_key(DEVICE, MODULES[1]));
            key.map_err(|error| error.to_string())
        })?;
        Ok(json!({ "daemon": name, "starts": starts }))
    }

    /// Stops the runtime, which signs its last word, and checks the whole log against the key.
    fn audited(&mut self) -> Result<Value, Failure> {
        let paths = self.paths()?;
        if !self.options.keep {
            self.with(|run| {
                let found = run.daemons.iter_mut().find(|(name, _)| *name == "runtimed");
                found.ok_or("no runtimed")?.1.stop();
                Ok(())
            })?;
        }
        let key = crate::audit::public_key(&Client::new(&paths.keyd), "holdfast_audit_runtimed")?;
        let report = crate::audit::verify(&paths.runtimed.join("audit"), Some(&key))?;
        Ok(crate::audit::summary(&report)?)
    }

    fn hub(&self) -> Result<&Hub, Failure> {
        self.hub.as_ref().ok_or_else(|| "no hub".into())
    }

    fn config(&self, name: &str) -> Result<Vec<String>, Failure> {
        let path = self.folder()?.join("config").join(name);
        Ok(vec!["--config".to_owned(), path.display().to_string()])
    }

    /// What a module has printed under this event.
    fn said(&self, module: &str, event: &str) -> Result<Value, Failure> {
        let logs = self.paths()?.runtimed.join("logs");
        let file = logs.join(format!("{module}.log"));
        Ok(watch::until(&logs, PATIENCE, || {
            let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let lines = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut last = None;
            for line in lines {
                if line["event"] == event {
                    return Ok(line);
                }
                last = Some(line);
            }
            Err(format!(
                "{module} has not said {event:?}; last: {}",
                last.unwrap_or_default()
            ))
        })?)
    }
}

/// Gives the hub ports that stay when it is started again. They were free a moment ago.
fn fix_ports(config: &Path) -> Result<(), Failure> {
    let mut text = zeroize::Zeroizing::new(fs::read_to_string(config)?);
    let taken = [free_port()?, free_port()?];
    for (_, port) in &taken {
        *text = text.replacen("\"127.0.0.1:0\"", &format!("\"127.0.0.1:{port}\""), 1);
    }
    // In place: owner and mode stay as `init` made them.
    let mut file = fs::File::options()
        .write(true)
        .truncate(true)
        .open(config)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(())
}

fn free_port() -> std::io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Programs of the product lie beside this one.
fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    if !path.exists() {
        let folder = own.parent().unwrap_or(Path::new("/")).display();
        return Err(format!("{name} is not in {folder}; build it first: make build").into());
    }
    Ok(path)
}

fn command(path: &Path) -> std::process::Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "quickstart is who starts the hub"
    )]
    let mut command = std::process::Command::new(path);
    command.env_clear().current_dir("/");
    command
}

/// Waits for a socket, then for somebody to take a connection on it.
fn answers(socket: &Path) -> Result<(), Failure> {
    appears(socket)?;
    std::os::unix::net::UnixStream::connect(socket)?;
    Ok(())
}

fn appears(socket: &Path) -> Result<(), Failure> {
    let folder = socket.parent().ok_or("a socket has a folder")?;
    watch::until(folder, PATIENCE, || {
        fs::symlink_metadata(socket).map_err(|error| format!("{}: {error}", socket.display()))
    })?;
    Ok(())
}

fn readable(path: &Path) -> std::io::Result<()> {
    mode(path, 0o644)
}

fn executable(path: &Path) -> std::io::Result<()> {
    mode(path, 0o755)
}

fn mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn ms(since: Instant) -> f64 {
    (since.elapsed().as_micros() as f64) / 1000.0
}

/// Records of an audit log, oldest first; lines that are none are left out.
fn records(folder: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| serde_json::from_str(&line).ok())
        .collect()
}

/// The last lines of each log, for a run that failed.
fn last_words(world: &World) -> Vec<String> {
    let mut words = Vec::new();
    for folder in [world.path("log"), world.path("runtimed/logs")] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let name = entry.file_name().to_string_lossy().into_owned();
            let last = lines.iter().rev().take(6).rev();
            words.extend(last.map(|line| format!("{name}: {line}")));
        }
    }
    words
}

/// What quickstart shows of a certificate.
struct Certificate {
    subject: String,
    issuer: String,
    until: String,
    ca: bool,
}

fn certificate(pem: &str) -> Result<Certificate, Failure> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    let cert = pem.parse_x509()?;
    Ok(Certificate {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        until: contract::time::rfc3339(cert.validity().not_after.timestamp()),
        ca: cert.is_ca(),
    })
}
