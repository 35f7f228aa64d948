//! The roads of requests, timed: keys, attested signatures, certificates, identities, the list.
//!
//! Every request is sent by a puppet with the same client, to ours and to the floor in turn.

use std::path::Path;

use contract::bytes::Bytes;
use serde_json::{Value, json};

use super::floor::{self, Bare};
use super::{Effort, Failure, Figure, Row, median};
use crate::load::{self, Place};
use crate::puppet::{Hello, Order, Puppet, Repeat};
use crate::stage::{DAEMONS, MODULE, Stage};

const VERSION: &str = "?api-version=2020-09-01";
const RUNTIME: &str = "?api-version=2020-07-07";
/// A certificate request with a P-256 key.
const CSR: &str = include_str!("bench.csr");

/// Who sends, and where the floor is.
pub struct Road<'a> {
    /// The device.
    pub stage: &'a Stage,
    /// The floor's socket.
    pub floor: &'a Path,
    /// The floor's process.
    pub floor_process: u32,
    /// A process of the host.
    pub host: &'a mut Puppet,
    /// The bare operations.
    pub bare: Bare,
    /// How long it may take.
    pub effort: Effort,
}

/// A request and what its floor is made of.
struct Asked<'a> {
    what: &'static str,
    socket: &'a Path,
    send: Vec<u8>,
    /// How many hops the floor has.
    hops: f64,
    /// What else the floor has, in microseconds, and its name.
    more: (f64, &'static str),
    limit: f64,
    fresh: bool,
}

impl Road<'_> {
    /// The floor itself, beside the least server there is: what proof and strictness cost.
    ///
    /// # Errors
    /// When a request fails.
    pub fn least(&mut self, least: &Path) -> Result<Row, Failure> {
        let send = floor::request(&[0; 420]);
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for _ in 0..self.effort.rounds {
            others.push(self.round(None, least, &send, false)?);
            ours.push(self.round(None, self.floor, &send, false)?);
        }
        Ok(Row {
            what: "the floor itself: echo of 420 bytes by our server, p50".to_owned(),
            unit: "us",
            ours: Figure::of(ours),
            floor: Some((
                Figure::of(others),
                "a thread that reads and writes".to_owned(),
            )),
            limit: 1.5,
            rate: false,
        })
    }

    /// The key service: three operations at one connection, one at eight and at 64.
    ///
    /// # Errors
    /// When a request fails.
    pub fn keys(&mut self) -> Result<Vec<Row>, Failure> {
        let socket = self.stage.socket("key");
        let key = self.handle("/key", &json!({ "keyId": "c-h", "usage": "sign" }))?;
        let pair = self.handle(
            "/keypair",
            &json!({ "keyId": "c-p", "preferredAlgorithms": "ec-p256" }),
        )?;
        let cipher = self.handle("/key", &json!({ "keyId": "c-e", "usage": "encrypt" }))?;
        let message = Bytes(b"localhost%2Fdevices%2Fbench\n1700000000".to_vec());
        let hmac = post(
            "/sign",
            VERSION,
            &json!({ "keyHandle": key, "algorithm": "HMAC-SHA256",
                     "parameters": { "message": message } }),
        );
        let ecdsa = post(
            "/sign",
            VERSION,
            &json!({ "keyHandle": pair, "algorithm": "ECDSA",
                     "parameters": { "digest": Bytes(vec![7; 32]) } }),
        );
        let aead = post(
            "/encrypt",
            VERSION,
            &json!({ "keyHandle": cipher, "algorithm": "AEAD",
                     "parameters": { "iv": Bytes(vec![1; 12]), "aad": Bytes(Vec::new()) },
                     "plaintext": Bytes(vec![7; 1024]) }),
        );
        let mut rows = Vec::new();
        for (what, send, more) in [
            (
                "keyd: HMAC signature, p50",
                &hmac,
                (self.bare.hmac, "bare HMAC"),
            ),
            (
                "keyd: ECDSA P-256 signature, p50",
                &ecdsa,
                (self.bare.ecdsa, "bare ECDSA"),
            ),
            (
                "keyd: AEAD of 1 KiB, p50",
                &aead,
                (self.bare.aead, "bare AEAD"),
            ),
        ] {
            rows.push(self.latency(
                None,
                Asked {
                    what,
                    socket: &socket,
                    send: send.clone(),
                    hops: 1.0,
                    more: (more.0 / 1e3, more.1),
                    limit: 1.3,
                    fresh: false,
                },
            )?);
        }
        for (what, send, connections, bare) in [
            ("keyd: HMAC, 8 connections", &hmac, 8, self.bare.hmac),
            ("keyd: HMAC, 64 connections", &hmac, 64, self.bare.hmac),
            ("keyd: ECDSA, 8 connections", &ecdsa, 8, self.bare.ecdsa),
            ("keyd: ECDSA, 64 connections", &ecdsa, 64, self.bare.ecdsa),
        ] {
            rows.push(self.throughput(what, &socket, send, connections, bare)?);
        }
        Ok(rows)
    }

    /// A module's signature through `runtimed` and `keyd`, kept and fresh connections.
    ///
    /// # Errors
    /// When a request fails.
    pub fn attested(&mut self, who: &Hello, module: &mut Puppet) -> Result<Vec<Row>, Failure> {
        let socket = Path::new("/run/iotedge/workload.sock");
        let path = format!("/modules/{MODULE}/genid/{}/sign", who.generation);
        let message = Bytes(b"localhost%2Fdevices%2Fbench\n1700000000".to_vec());
        let send = post(
            &path,
            RUNTIME,
            &json!({ "data": message, "keyId": "primary" }),
        );
        let mut rows = Vec::new();
        for (what, hops, limit, fresh) in [
            ("module: attested signature, p50", 1.0, 3.0, false),
            (
                "module: connect, attested signature, close, p50",
                1.0,
                2.5,
                true,
            ),
        ] {
            let more = match fresh {
                true => (0.0, ""),
                // Three hops, and one bare operation: that is not three of each.
                false => (self.bare.hmac / 3e3, "a third of bare HMAC"),
            };
            rows.push(self.latency(
                Some(&mut *module),
                Asked {
                    what,
                    socket,
                    send: send.clone(),
                    hops,
                    more,
                    limit,
                    fresh,
                },
            )?);
        }
        Ok(rows)
    }

    /// A certificate by the Edge CA, durable before the answer.
    ///
    /// # Errors
    /// When a request fails.
    pub fn certificate(&mut self) -> Result<Row, Failure> {
        let issuer = self.ask(
            &self.stage.socket("key"),
            &get("/keypair/aziot-edged-ca", VERSION),
        )?;
        let send = post(
            "/certificates",
            VERSION,
            &json!({ "certId": "c-bench", "csr": CSR,
                     "issuer": { "certId": "aziot-edged-ca",
                                 "privateKeyHandle": issuer["keyHandle"] } }),
        );
        let bare = self.bare;
        let socket = self.stage.socket("certificate");
        let effort = self.effort;
        self.effort.requests = effort.requests.min(300);
        let row = self.latency(
            None,
            Asked {
                what: "certd: certificate by a P-256 CA, durable, p50",
                socket: &socket,
                send,
                hops: 2.0,
                more: (
                    (bare.ecdsa + bare.verify + bare.fsync) / 1e3,
                    "bare ECDSA + verification + fsync",
                ),
                limit: 1.5,
                fresh: false,
            },
        );
        self.effort = effort;
        row
    }

    /// The device's identity, and a module's that is remembered.
    ///
    /// # Errors
    /// When a request fails.
    pub fn identities(&mut self) -> Result<Vec<Row>, Failure> {
        let socket = self.stage.socket("identity");
        let device = post("/identities/device", VERSION, &json!({ "type": "aziot" }));
        let module = get(
            "/identities/modules/sensor",
            &format!("{VERSION}&type=aziot"),
        );
        let mut rows = Vec::new();
        for (what, send, limit) in [
            ("identityd: device identity, p50", device, 2.0),
            ("identityd: module identity from memory, p50", module, 3.0),
        ] {
            rows.push(self.latency(
                None,
                Asked {
                    what,
                    socket: &socket,
                    send,
                    hops: 1.0,
                    more: (0.0, ""),
                    limit,
                    fresh: false,
                },
            )?);
        }
        Ok(rows)
    }

    /// The list of 50 modules; the agent creates what is missing.
    ///
    /// # Errors
    /// When a request fails.
    pub fn list(&mut self, agent: &mut Puppet) -> Result<Row, Failure> {
        for number in 2..50 {
            let spec = json!({ "name": format!("m{number}"), "type": "host",
                               "config": { "settings": { "image": "spare" } } });
            let order = Order {
                socket: "/run/iotedge/mgmt.sock".to_owned(),
                send: Bytes(post("/modules", RUNTIME, &spec)),
                until_close: false,
                repeat: None,
            };
            let reply = agent.send(&order)?;
            if !reply.bytes.0.starts_with(b"HTTP/1.1 201") {
                return Err(String::from_utf8_lossy(&reply.bytes.0).into_owned().into());
            }
        }
        let socket = self.stage.socket("management");
        let send = get("/modules", RUNTIME);
        let mut rounds = Vec::new();
        for _ in 0..self.effort.rounds {
            rounds.push(self.round(None, &socket, &send, false)?);
        }
        Ok(Row {
            what: "runtimed: list of 50 modules, p50".to_owned(),
            unit: "us",
            ours: Figure::of(rounds),
            floor: None,
            limit: 100.0,
            rate: false,
        })
    }

    fn latency(
        &mut self,
        mut inside: Option<&mut Puppet>,
        asked: Asked<'_>,
    ) -> Result<Row, Failure> {
        let echo = floor::request(&asked.send);
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..self.effort.rounds {
            floors.push(self.round(None, self.floor, &echo, asked.fresh)?);
            ours.push(self.round(
                inside.as_deref_mut(),
                asked.socket,
                &asked.send,
                asked.fresh,
            )?);
        }
        let echo = Figure::of(floors);
        let (more, name) = asked.more;
        let how = match (asked.hops > 1.0, asked.fresh, name) {
            (_, true, _) => "connect, echo, close".to_owned(),
            (true, _, name) => format!(
                "{} x echo {:.1} + {name} {more:.1}",
                asked.hops, echo.median
            ),
            (false, _, "") => "echo".to_owned(),
            (false, _, name) => format!("echo {:.1} + {name} {more:.1}", echo.median),
        };
        let floor = Figure {
            median: echo.median * asked.hops + more,
            low: echo.low * asked.hops + more,
            high: echo.high * asked.hops + more,
        };
        Ok(Row {
            what: asked.what.to_owned(),
            unit: "us",
            ours: Figure::of(ours),
            floor: Some((floor, how)),
            limit: asked.limit,
            rate: false,
        })
    }

    /// The median of one round, in microseconds.
    fn round(
        &mut self,
        inside: Option<&mut Puppet>,
        socket: &Path,
        send: &[u8],
        fresh: bool,
    ) -> Result<f64, Failure> {
        let repeat = Repeat {
            times: self.effort.requests,
            fresh,
            connections: 0,
            millis: 0,
        };
        self.place(Place::OneCore)?;
        let mut reply = inside
            .unwrap_or(self.host)
            .send(&order(socket, send, Some(repeat)))?;
        if !reply.error.is_empty() {
            return Err(reply.error.into());
        }
        Ok(median(&mut reply.nanos) / 1e3)
    }

    fn place(&self, place: Place) -> Result<(), Failure> {
        load::place(self.floor_process, place)?;
        for daemon in DAEMONS {
            if let Some(process) = self.stage.pid(daemon) {
                load::place(process, place)?;
            }
        }
        Ok(())
    }

    fn throughput(
        &mut self,
        what: &str,
        socket: &Path,
        send: &[u8],
        connections: usize,
        bare: f64,
    ) -> Result<Row, Failure> {
        let repeat = Repeat {
            times: 0,
            fresh: false,
            connections,
            millis: self.effort.millis,
        };
        self.place(Place::EveryCore)?;
        let echo = floor::request(send);
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        let cores = f64::from(u32::try_from(super::weight::cores()).unwrap_or(1));
        for _ in 0..self.effort.rounds {
            for (socket, send, into) in [
                (self.floor, &echo[..], &mut floors),
                (socket, send, &mut ours),
            ] {
                let reply = self.host.send(&order(socket, send, Some(repeat)))?;
                if !reply.error.is_empty() {
                    return Err(reply.error.into());
                }
                into.push(reply.rate);
            }
        }
        let echo = Figure::of(floors);
        // Each answer costs its echo and its share of the cores for the operation.
        let with = |rate: f64| 1.0 / (1.0 / rate + bare / 1e9 / cores);
        let floor = Figure {
            median: with(echo.median),
            low: with(echo.low),
            high: with(echo.high),
        };
        Ok(Row {
            what: what.to_owned(),
            unit: "/s",
            ours: Figure::of(ours),
            floor: Some((floor, format!("echo {:.0}/s + operation", echo.median))),
            limit: 1.3,
            rate: true,
        })
    }

    fn handle(&mut self, path: &str, body: &Value) -> Result<Value, Failure> {
        let answer = self.ask(&self.stage.socket("key"), &post(path, VERSION, body))?;
        Ok(answer["keyHandle"].clone())
    }

    fn ask(&mut self, socket: &Path, send: &[u8]) -> Result<Value, Failure> {
        let reply = self.host.send(&order(socket, send, None))?;
        let text = String::from_utf8_lossy(&reply.bytes.0).into_owned();
        match text.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 2") => Ok(serde_json::from_str(body)?),
            _ => Err(format!("{} {text}", reply.error).into()),
        }
    }
}

fn order(socket: &Path, send: &[u8], repeat: Option<Repeat>) -> Order {
    Order {
        socket: socket.display().to_string(),
        send: Bytes(send.to_vec()),
        until_close: false,
        repeat,
    }
}

fn post(path: &str, version: &str, body: &Value) -> Vec<u8> {
    load::request("POST", &format!("{path}{version}"), &body.to_string())
}

fn get(path: &str, version: &str) -> Vec<u8> {
    load::request("GET", &format!("{path}{version}"), "")
}
