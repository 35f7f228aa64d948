//! A hub in this process, and clients that speak to it by hand over TLS.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use contract::sas::{Audience, Claim, SasKey};
use hub::Running;
use hub::config::Config;
use serde_json::Value;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;
pub(crate) const HOST: &str = "hub.test";
/// A guard against hanging for ever, never a measure.
const GUARD: Duration = Duration::from_secs(20);

pub(crate) fn now() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "tokens of a test end by the real clock"
    )]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .try_into()
        .unwrap()
}

/// A folder that is gone afterwards.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hub-{}-{number}", std::process::id());
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the test made this folder itself"
        )]
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct World {
    pub(crate) folder: Folder,
    pub(crate) scope: String,
    pub(crate) https: SocketAddr,
    pub(crate) mqtt: SocketAddr,
    running: Option<Running>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl World {
    /// A hub on free ports.
    pub(crate) fn new() -> Self {
        Self::with(&[HOST, "127.0.0.1"], |text| text)
    }

    /// A hub whose configuration was changed.
    pub(crate) fn with(names: &[&str], change: impl FnOnce(String) -> String) -> Self {
        let folder = Folder::new();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        hub::init::init(&folder.0, &names).unwrap();
        let file = folder.0.join("hub.toml");
        let text = change(std::fs::read_to_string(&file).unwrap());
        let mut open = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&file)
            .unwrap();
        open.write_all(text.as_bytes()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (https, mqtt) = (any, any);
        let mut world = Self {
            folder,
            scope: String::new(),
            https,
            mqtt,
            running: None,
            runtime: Some(runtime),
        };
        world.start();
        world
    }

    /// A hub that runs elsewhere, by its folder and what it wrote into it.
    pub(crate) fn of(folder: Folder) -> Self {
        let text = std::fs::read_to_string(folder.0.join("endpoints.json")).unwrap();
        let endpoints: Value = serde_json::from_str(&text).unwrap();
        let address = |name: &str| endpoints[name].as_str().unwrap().parse().unwrap();
        Self {
            folder,
            scope: endpoints["scope_id"].as_str().unwrap().to_owned(),
            https: address("https"),
            mqtt: address("mqtt"),
            running: None,
            runtime: None,
        }
    }

    fn start(&mut self) {
        let config = Config::read(&self.folder.0.join("hub.toml")).unwrap();
        let running = self
            .runtime
            .as_ref()
            .unwrap()
            .block_on(Running::start(config))
            .unwrap();
        self.https = running.endpoints().https;
        self.mqtt = running.endpoints().mqtt;
        self.scope.clone_from(&running.endpoints().scope_id);
        self.running = Some(running);
    }

    /// Ends all connections and starts again from the same folder.
    pub(crate) fn restart(&mut self) {
        self.running = None;
        self.start();
    }

    pub(crate) fn policy_key(&self, policy: &str) -> SasKey {
        let text = std::fs::read_to_string(self.folder.0.join("hub.toml")).unwrap();
        let table: toml::Table = text.parse().unwrap();
        SasKey::from_base64(table["policies"][policy].as_str().unwrap()).unwrap()
    }

    /// A token of a policy for the whole hub.
    pub(crate) fn policy(&self, name: &str) -> String {
        let key = self.policy_key(name);
        let claim = Claim::new(&Audience::Service { host: HOST }, now(), 600).unwrap();
        claim
            .policy(name)
            .sign(|text| Ok::<_, ()>(key.sign(text)))
            .unwrap()
            .to_string()
    }

    pub(crate) fn owner(&self) -> String {
        self.policy("iothubowner")
    }

    fn connect(&self, address: SocketAddr) -> Tls {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(self.folder.0.join("ca.pem")).unwrap() {
            roots.add(root.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(HOST).unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        StreamOwned::new(
            ClientConnection::new(Arc::new(config), name).unwrap(),
            stream,
        )
    }

    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> Answer {
        self.call_with(
            method,
            path,
            token,
            &[],
            body.map(ToString::to_string).as_deref(),
        )
    }

    /// One request on a connection of its own, like the identity daemon.
    pub(crate) fn call_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let version = if path.contains('?') { "&" } else { "?" };
        let path = format!("{path}{version}api-version=2021-04-12");
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n");
        if !token.is_empty() {
            text += &format!("Authorization: {token}\r\n");
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            text += "Content-Type: application/json\r\n";
            text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        } else {
            text += "\r\n";
        }
        self.raw(&text)
    }

    pub(crate) fn raw(&self, request: &str) -> Answer {
        let mut stream = self.connect(self.https);
        stream.write_all(request.as_bytes()).unwrap();
        Answer::read(stream)
    }

    /// Creates a device with keys of its own and gives its primary key.
    pub(crate) fn device(&self, id: &str, edge: bool) -> SasKey {
        let body = serde_json::json!({"deviceId": id, "capabilities": {"iotEdge": edge}});
        let answer = self.call("PUT", &format!("/devices/{id}"), &self.owner(), Some(&body));
        assert_eq!(answer.status, 200, "{answer:?}");
        primary(&answer.body)
    }

    pub(crate) fn module(&self, device: &str, id: &str) -> SasKey {
        let body = serde_json::json!({"deviceId": device, "moduleId": id});
        let path = format!("/devices/{device}/modules/{id}");
        let answer = self.call("PUT", &path, &self.owner(), Some(&body));
        assert_eq!(answer.status, 200, "{answer:?}");
        primary(&answer.body)
    }

    /// An MQTT client that has sent CONNECT and read the answer.
    pub(crate) fn mqtt(&self, id: &str, token: &str, clean: bool) -> Mqtt {
        let user = format!("{HOST}/{id}/?api-version=2021-04-12");
        self.mqtt_as(id, &user, token, clean, None)
    }

    pub(crate) fn mqtt_as(
        &self,
        client: &str,
        user: &str,
        token: &str,
        clean: bool,
        will: Option<(&str, &[u8])>,
    ) -> Mqtt {
        let mut flags = 0xc0 | u8::from(clean) << 1;
        let mut body = Vec::from(b"\x00\x04MQTT\x04".as_slice());
        let field = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            [length.as_slice(), bytes].concat()
        };
        let mut fields = field(client.as_bytes());
        if let Some((topic, message)) = will {
            flags |= 4;
            fields.extend(field(topic.as_bytes()));
            fields.extend(field(message));
        }
        fields.extend(field(user.as_bytes()));
        fields.extend(field(token.as_bytes()));
        body.push(flags);
        body.extend(60_u16.to_be_bytes());
        body.extend(fields);
        let mut client = Mqtt {
            stream: self.connect(self.mqtt),
            connack: [0; 2],
        };
        client.send(0x10, &body);
        let (kind, body) = client.receive().expect("an answer to CONNECT");
        assert_eq!(kind, 0x20);
        client.connack = body.try_into().unwrap();
        client
    }
}

pub(crate) fn primary(body: &Value) -> SasKey {
    SasKey::from_base64(
        body["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .unwrap(),
    )
    .unwrap()
}

/// A token of an entity; `path` is `D` or `D/modules/M`, and the text is the identity daemon's:
/// slashes as they are.
pub(crate) fn token(path: &str, key: &SasKey) -> String {
    sign(&format!("{HOST}/devices/{path}"), key, "")
}

pub(crate) fn sign(resource: &str, key: &SasKey, more: &str) -> String {
    use base64::Engine as _;
    let expiry = now() + 600;
    let signature = key.sign(format!("{resource}\n{expiry}").as_bytes());
    let signature = base64::engine::general_purpose::STANDARD.encode(signature);
    let signature = contract::sas::encode(&signature);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{more}")
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
}

impl Answer {
    fn read(stream: Tls) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let length = headers
            .get("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body).unwrap(),
        };
        Self {
            status,
            headers,
            body,
        }
    }

    /// The hub's name for what is wrong.
    pub(crate) fn error(&self) -> &str {
        let name = self.headers.get("iothub-errorcode").map_or("", |name| name);
        let message = self.body["Message"].as_str().unwrap_or_default();
        assert!(
            message.starts_with(&format!("ErrorCode:{name};")),
            "{self:?}"
        );
        name
    }
}

pub(crate) struct Mqtt {
    stream: Tls,
    /// Session present, return code.
    pub(crate) connack: [u8; 2],
}

impl Mqtt {
    pub(crate) fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut rest = body.len();
        while rest > 127 {
            packet.push(u8::try_from(rest & 127).unwrap() | 128);
            rest >>= 7;
        }
        packet.push(u8::try_from(rest).unwrap());
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    /// The next packet, or `None` when the hub has closed the connection.
    pub(crate) fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        let kind = byte[0];
        let (mut length, mut shift) = (0, 0);
        loop {
            self.fill(&mut byte)?;
            length |= usize::from(byte[0] & 127) << shift;
            shift += 7;
            if byte[0] < 128 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        Some((kind, body))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        let result = self.stream.read_exact(bytes);
        if let Err(bad) = &result {
            assert!(
                !matches!(bad.kind(), TimedOut | WouldBlock),
                "neither a packet nor an end"
            );
        }
        result.ok()
    }

    pub(crate) fn publish(&mut self, topic: &str, body: &[u8], id: Option<u16>) {
        let length = u16::try_from(topic.len()).unwrap().to_be_bytes();
        let id_bytes = id.map(u16::to_be_bytes);
        let id_bytes = id_bytes.as_ref().map_or([].as_slice(), |bytes| bytes);
        let kind = if id.is_some() { 0x32 } else { 0x30 };
        self.send(kind, &[&length, topic.as_bytes(), id_bytes, body].concat());
    }

    /// Subscribes and gives the return code.
    pub(crate) fn subscribe(&mut self, filter: &str) -> u8 {
        let length = u16::try_from(filter.len()).unwrap().to_be_bytes();
        self.send(
            0x82,
            &[b"\x00\x07", length.as_slice(), filter.as_bytes(), b"\x01"].concat(),
        );
        let (kind, body) = self.receive().expect("SUBACK");
        assert_eq!((kind, &body[..2]), (0x90, b"\x00\x07".as_slice()));
        body[2]
    }

    /// The next message: topic and body.
    pub(crate) fn message(&mut self) -> (String, Value) {
        let (kind, body) = self.receive().expect("a message");
        assert_eq!(kind, 0x30, "QoS 0, not retained");
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
        let body = match &body[2 + length..] {
            [] => Value::Null,
            text => serde_json::from_slice(text).unwrap(),
        };
        (topic, body)
    }

    /// An orderly end.
    pub(crate) fn disconnect(mut self) {
        self.send(0xe0, b"");
        assert_eq!(self.receive(), None);
    }
}
