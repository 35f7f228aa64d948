//! A sample module: what a module developer's program does with its socket, and what quickstart
//! lets run twice.
//!
//! It asks for a signature and a certificate, speaks TLS with another module, and sends a message
//! to the hub, each as its environment says. It prints one JSON object per line; keys and tokens
//! are never printed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::api::workload as api;
use contract::bytes::Bytes;
use contract::endpoint::{Empty, Maybe};
use contract::names::{Generation, ModuleName};
use local::client::Client;
use net::mqtt::{Identity, RETRY, Session, Settings};
use net::tls::{self, Credentials, Roots, Target};
use net::token;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

/// Longest wait for another module or the hub.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&json!({ "event": "failed", "why": chain(&*error) }));
            ExitCode::FAILURE
        }
    }
}

/// What the environment says: the interface between a module and whoever deploys it.
fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a module is configured by its environment"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn needed(name: &str) -> Result<String, Failure> {
    variable(name).ok_or_else(|| format!("{name} is not set").into())
}

fn run() -> Result<(), Failure> {
    let module = Arc::new(Module::from_environment()?);
    let data = b"holdfast quickstart".to_vec();
    let digest = module.sign(&data)?;
    say(&json!({ "event": "signature", "data": Bytes(data), "digest": Bytes(digest.to_vec()) }));
    let mine = module.client_certificate()?;
    say(&json!({ "event": "certificate", "chain": mine.certificate, "until": mine.expiration }));
    if let Some(port) = variable("SAMPLE_SERVE") {
        serve(&module, port.parse()?)?;
    }
    if let Some(peer) = variable("SAMPLE_CALL") {
        call(&module, &mine, &peer)?;
    }
    if let Some(address) = variable("HOLDFAST_HUB_MQTT") {
        message(&module, &address)?;
    }
    say(&json!({ "event": "ready" }));
    loop {
        std::thread::park();
    }
}

/// This module and its socket.
struct Module {
    name: ModuleName,
    generation: Generation,
    workload: Client,
}

impl Module {
    fn from_environment() -> Result<Self, Failure> {
        let uri = needed("IOTEDGE_WORKLOADURI")?;
        let path = uri
            .strip_prefix("unix://")
            .ok_or("IOTEDGE_WORKLOADURI is no unix:// URI")?;
        Ok(Self {
            name: ModuleName::new(needed("IOTEDGE_MODULEID")?)?,
            generation: Generation::new(needed("IOTEDGE_MODULEGENERATIONID")?)?,
            workload: Client::new(path),
        })
    }

    fn sign(&self, data: &[u8]) -> Result<[u8; 32], Failure> {
        let target = (self.name.clone(), self.generation.clone());
        let request = api::SignRequest {
            data: Bytes(data.to_vec()),
            key_id: None,
            algo: None,
        };
        let answer = self.workload.call::<api::Sign>(&target, &request)?;
        answer
            .digest
            .0
            .try_into()
            .map_err(|_| "the signature has not 32 bytes".into())
    }

    fn client_certificate(&self) -> Result<api::CertificateResponse, Failure> {
        Ok(self
            .workload
            .call::<api::IdentityCertificate>(&self.name, &Maybe(None))?)
    }

    fn server_certificate(&self) -> Result<api::CertificateResponse, Failure> {
        let target = (self.name.clone(), self.generation.clone());
        let common_name = self.name.plain().to_owned();
        let request = api::ServerCertificateRequest {
            common_name,
            expiration: None,
        };
        Ok(self
            .workload
            .call::<api::ServerCertificate>(&target, &request)?)
    }

    fn roots(&self) -> Result<Roots, Failure> {
        let bundle = self.workload.call::<api::ReadTrustBundle>(&(), &Empty)?;
        Ok(Roots::from_pem(bundle.certificate.as_bytes())?)
    }
}

fn credentials(answer: &api::CertificateResponse) -> Result<Credentials, Failure> {
    let key = answer.private_key.bytes.expose().as_bytes();
    Ok(Credentials::from_pem(answer.certificate.as_bytes(), key)?)
}

/// Answers other modules, which must show a certificate of this device.
fn serve(module: &Arc<Module>, port: u16) -> Result<(), Failure> {
    let mine = module.server_certificate()?;
    let server = tls::Server::mutual(&module.roots()?, credentials(&mine)?)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    std::thread::Builder::new().spawn(move || {
        for stream in listener.incoming() {
            let answered = stream.map_err(Failure::from).and_then(|stream| {
                let mut stream = server.accept(stream, Instant::now() + PATIENCE)?;
                let mut line = String::new();
                BufReader::new(&mut stream).read_line(&mut line)?;
                stream.write_all(format!("heard {line}").as_bytes())?;
                Ok(stream.close()?)
            });
            if let Err(error) = answered {
                say(&json!({ "event": "refused", "why": chain(&*error) }));
            }
        }
    })?;
    say(&json!({ "event": "serving" }));
    Ok(())
}

/// Speaks to another module: `NAME:PORT`.
fn call(module: &Module, mine: &api::CertificateResponse, peer: &str) -> Result<(), Failure> {
    let (name, port) = peer.rsplit_once(':').ok_or("SAMPLE_CALL is no NAME:PORT")?;
    let target = Target::parse(&format!("127.0.0.1:{port}"), 0)?.named(name)?;
    let client = tls::Client::with_credentials(&module.roots()?, credentials(mine)?)?;
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match client.connect(&target, deadline) {
            Ok(stream) => break stream,
            // The other module may not listen yet.
            Err(tls::TlsError::Connect { .. }) if Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    };
    stream.write_all(format!("hello from {}\n", module.name).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(&mut stream).read_line(&mut answer)?;
    say(&json!({ "event": "mtls", "peer": name, "answer": answer.trim() }));
    Ok(())
}

/// Sends one message to the hub.
fn message(module: &Arc<Module>, address: &str) -> Result<(), Failure> {
    let roots = std::fs::read(needed("HOLDFAST_HUB_CA")?)?;
    let hub = needed("IOTEDGE_IOTHUBHOSTNAME")?;
    let identity = Identity {
        hub: hub.clone(),
        device: needed("IOTEDGE_DEVICEID")?,
        module: Some(module.name.identity()),
    };
    let clock = local::clock::Clock::open(None)?;
    let wall = move || {
        let now = clock.now();
        now.may_mint().then_some(now.wall)
    };
    let signer = Arc::clone(module);
    let sign = move |data: &[u8]| signer.sign(data).map_err(|error| error.to_string().into());
    let tokens = token::Source::new(identity.owner(), 3600, sign, wall);
    let name = Target::parse(&hub, 8883)?.host().to_owned();
    let mut session = Session::new(Settings {
        identity,
        product: "holdfast-sample".to_owned(),
        target: Target::parse(address, 8883)?.named(&name)?,
        tls: tls::Client::new(&Roots::from_pem(&roots)?)?,
        tokens,
        retry: RETRY,
    });
    let body = json!({ "from": module.name.plain(), "text": "hello hub" }).to_string();
    let properties = [("kind", "greeting")];
    session.send(body.as_bytes(), &properties, Instant::now() + PATIENCE)?;
    session.close();
    say(&json!({ "event": "message", "body": body }));
    Ok(())
}

fn say(event: &Value) {
    // Nobody reading is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{event}");
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
