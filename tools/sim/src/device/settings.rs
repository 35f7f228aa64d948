//! Folders, programs, configuration and grants of a device: the keys that a real one has, other
//! paths and users.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;

use contract::audit::{hash, hex};
use shim::puppet::CONTROL;

use super::{DAEMONS, Device, Failure, Module, programs, set_mode};

impl Device {
    pub(super) fn folders(&self) -> Result<(), Failure> {
        let users = self.users;
        for (name, uid, mode) in [
            ("run-keyd", users.keyd, 0o750),
            ("run-identityd", users.identityd, 0o750),
            ("run-runtimed", users.runtimed, 0o750),
            ("keyd", users.keyd, 0o700),
            ("keyd/state", users.keyd, 0o700),
            ("certd", users.identityd, 0o700),
            ("identityd", users.identityd, 0o700),
            ("runtimed", users.runtimed, 0o755),
        ] {
            fs::create_dir(self.path(name))?;
            set_mode(&self.path(name), mode)?;
            if users.separate {
                chown(self.path(name), Some(uid), Some(users.services))?;
            }
        }
        for name in ["run-warden", "grants", "bin", "config", "log"] {
            fs::create_dir(self.path(name))?;
            set_mode(&self.path(name), 0o755)?;
        }
        let built = programs()?;
        for name in DAEMONS.iter().chain(&["puppet"]) {
            let (from, to) = (format!("holdfast-{name}"), self.path("bin"));
            let to = to.join(&from);
            let from = built.join(&from);
            // A second name costs nothing; where there can be none, a copy does.
            let placed = fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop));
            placed.map_err(|cause| {
                format!(
                    "{} is missing ({cause}): build the programs first, as `make test` does \
                     (cargo build --workspace --bins)",
                    from.display()
                )
            })?;
        }
        // The same program with another digest: what follows the last section is never looked at.
        let other = self.path("bin/other");
        fs::copy(self.path("bin/holdfast-puppet"), &other)?;
        io::Write::write_all(&mut File::options().append(true).open(&other)?, b"other")?;
        Ok(set_mode(&other, 0o755)?)
    }

    pub(super) fn configure(&self) -> Result<(), Failure> {
        let users = self.users;
        let uri = |api: &str| format!("\"unix://{}\"", self.socket(api).display());
        let mut keyd = format!(
            "max_requests = 64\nmax_connections = 64\n\
             [aziot_keys]\nhomedir_path = {:?}\n[endpoints]\naziot_keyd = {}\n",
            self.path("keyd/state"),
            uri("key")
        );
        for (uid, keys, purposes, delegate) in [
            (
                users.identityd,
                "aziot_identityd_master_id",
                "\"sign-token\", \"derive\", \"export-derived\"",
                users.runtimed,
            ),
            (
                users.identityd,
                "aziot-edged-ca",
                "\"sign-cert\"",
                users.identityd,
            ),
            (
                users.runtimed,
                "aziot-edged-ca",
                "\"sign-cert\"",
                users.identityd,
            ),
            (
                users.runtimed,
                "iotedge_master_encryption_id",
                "\"derive\", \"encrypt\", \"decrypt\", \"sign-token\"",
                users.runtimed,
            ),
            (
                users.runtimed,
                "holdfast_*",
                "\"derive\", \"sign-token\", \"sign-cert\"",
                users.runtimed,
            ),
        ] {
            keyd.push_str(&format!(
                "[[principal]]\nuid = {uid}\nkeys = [{keys:?}]\npurposes = [{purposes}]\n\
                 delegates = [{delegate}]\n"
            ));
        }
        self.write("config/keyd.toml", 0o644, keyd.as_bytes())?;
        let endpoints = format!(
            "[endpoints]\naziot_keyd = {}\naziot_certd = {}\naziot_identityd = {}\n",
            uri("key"),
            uri("certificate"),
            uri("identity")
        );
        let certd = format!(
            "homedir_path = {:?}\nmax_requests = 64\n\
             [preloaded_certs]\naziot-edged-trust-bundle = [\"aziot-edged-ca\"]\n\
             [cert_issuance.aziot-edged-ca]\nmethod = \"self_signed\"\nexpiry_days = 90\n\
             [[principal]]\nuid = {}\ncerts = [\"aziot-edged-ca\", \"aziot-edged/module/*\"]\n\
             {endpoints}",
            self.path("certd"),
            users.runtimed
        );
        self.write("config/certd.toml", 0o644, certd.as_bytes())?;
        let identityd = format!(
            "hostname = \"device\"\nhomedir = {:?}\nmax_requests = 64\n\
             [provisioning]\nsource = \"none\"\n{endpoints}\
             [[principal]]\nuid = {}\nname = \"aziot-edge\"\n",
            self.path("identityd"),
            users.runtimed
        );
        self.write("config/identityd.toml", 0o644, identityd.as_bytes())?;
        self.configure_modules(&uri)
    }

    fn configure_modules(&self, uri: &dyn Fn(&str) -> String) -> Result<(), Failure> {
        let users = self.users;
        let operator = rustix::process::geteuid().as_raw();
        let control = self.path("puppets/control");
        let mut runtimed = format!(
            "hostname = \"device\"\nhomedir = {:?}\noperators = [{operator}]\n\
             [edge_ca]\nalgorithms = \"ec-p256\"\n\
             [listen]\nmanagement_uri = {}\n\
             [iotedge_max_requests]\nmanagement = 64\nworkload = 64\n\
             [endpoints]\naziot_keyd_url = {}\naziot_certd_url = {}\naziot_identityd_url = {}\n\
             [warden]\nsocket = \"unix://{}\"\n",
            self.path("runtimed"),
            uri("management"),
            uri("key"),
            uri("certificate"),
            uri("identity"),
            self.path("run-warden/warden.sock").display(),
        );
        for Module { name, .. } in &self.plan.modules {
            let table = match *name {
                "edgeAgent" => format!(
                    "[agent]\nname = {name:?}\ntype = \"host\"\nconfig = {{ image = {name:?} }}\n\
                     [agent.env]\n"
                ),
                _ => format!("[[module]]\nname = {name:?}\nimage = {name:?}\n[module.env]\n"),
            };
            runtimed.push_str(&format!("{table}{CONTROL} = {control:?}\n"));
        }
        runtimed.push_str(&format!(
            "[attestation]\nrequire_strong = {}\n[attestation.modules]\n",
            self.plan.require_strong
        ));
        for Module { name, strictness } in &self.plan.modules {
            runtimed.push_str(&format!("{name} = {strictness:?}\n"));
        }
        self.write("config/runtimed.toml", 0o644, runtimed.as_bytes())?;
        let warden = format!(
            "socket = {:?}\nallowed_uids = [{}]\ngrants = {:?}\ncgroup_parent = {:?}\n\
             minimum_uid = {}\n",
            self.path("run-warden/warden.sock"),
            users.runtimed,
            self.path("grants"),
            self.name(),
            users.first_module.clamp(1, 1000),
        );
        self.write("config/warden.toml", 0o600, warden.as_bytes())?;
        for (index, Module { name, .. }) in self.plan.modules.iter().enumerate() {
            // A program of its own, so that a test can take it away from one module.
            let program = self.path(&format!("bin/{name}"));
            fs::copy(self.path("bin/holdfast-puppet"), &program)?;
            set_mode(&program, 0o755)?;
            let digest = hex(&hash(&fs::read(&program)?));
            let uid = users.module(index);
            let gid = if users.separate { uid } else { users.services };
            let grant = format!(
                "executable = {program:?}\nsha256 = \"{digest}\"\nuid = {uid}\ngid = {gid}\n\
                 execute = [{:?}]\nnetwork = \"host\"\n",
                self.path("bin/other")
            );
            self.write(&format!("grants/{name}.toml"), 0o644, grant.as_bytes())?;
        }
        Ok(())
    }

    fn write(&self, name: &str, mode: u32, text: &[u8]) -> io::Result<()> {
        fs::write(self.path(name), text)?;
        set_mode(&self.path(name), mode)
    }
}
