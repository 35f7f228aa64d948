//! The configuration files of a run: the same keys a device has, other paths and users.

use std::io;
use std::path::PathBuf;

use contract::audit::hex;

use super::world::{PREFIX, World};

/// The modules of a run; the first is the agent.
pub(super) const MODULES: [&str; 3] = ["edgeAgent", "sensor", "actuator"];
/// The device's registration at the hub.
pub(super) const DEVICE: &str = "quickstart-1";
/// The enrolment group that lets it in.
pub(super) const GROUP: &str = "quickstart";

/// Where things are in the folder.
pub(super) struct Paths {
    /// Sockets.
    pub(super) keyd: PathBuf,
    /// Sockets.
    pub(super) certd: PathBuf,
    /// Sockets.
    pub(super) identityd: PathBuf,
    /// Sockets.
    pub(super) management: PathBuf,
    /// Sockets.
    pub(super) warden: PathBuf,
    /// State of `runtimed`.
    pub(super) runtimed: PathBuf,
    /// Root certificate of the hub, for everybody.
    pub(super) hub_roots: PathBuf,
}

impl Paths {
    /// The paths of a folder.
    #[must_use]
    pub(super) fn of(world: &World) -> Self {
        Self {
            keyd: world.path("run-keyd/keyd.sock"),
            certd: world.path("run-identityd/certd.sock"),
            identityd: world.path("run-identityd/identityd.sock"),
            management: world.path("run-runtimed/mgmt.sock"),
            warden: world.path("run-warden/warden.sock"),
            runtimed: world.path("runtimed"),
            hub_roots: world.path("hub-roots.pem"),
        }
    }
}

/// What the hub said of itself.
pub(super) struct HubFacts {
    /// Where HTTPS is.
    pub(super) https: u16,
    /// Where MQTT is.
    pub(super) mqtt: u16,
    /// The provisioning scope.
    pub(super) scope: String,
}

/// Folders of the device.
///
/// # Errors
/// As the system says.
pub(super) fn folders(world: &World) -> io::Result<()> {
    let users = world.users;
    for (name, uid, mode) in [
        ("log", own(world), 0o755),
        ("run-keyd", users.keyd, 0o750),
        ("run-identityd", users.identityd, 0o750),
        ("run-runtimed", users.runtimed, 0o750),
        ("run-warden", own(world), 0o755),
        ("keyd", users.keyd, 0o700),
        ("certd", users.identityd, 0o700),
        ("identityd", users.identityd, 0o700),
        ("runtimed", users.runtimed, 0o755),
        ("grants", own(world), 0o755),
        ("bin", own(world), 0o755),
        ("config", own(world), 0o755),
    ] {
        world.dir(name, uid, mode)?;
    }
    Ok(())
}

/// The user that runs quickstart: owner of configuration, grants and programs.
fn own(world: &World) -> u32 {
    if world.users.separate {
        0
    } else {
        world.users.keyd
    }
}

/// Configuration of `keyd`; the device's key is the one derived for it from its group.
///
/// # Errors
/// As the system says.
pub(super) fn keyd(world: &World, device_key: &[u8]) -> io::Result<()> {
    let (users, paths) = (world.users, Paths::of(world));
    world.file("keyd/device-id", users.keyd, 0o600, device_key)?;
    let mut text = format!(
        "max_requests = 64\n\
         [aziot_keys]\nhomedir_path = {home:?}\n\
         [endpoints]\naziot_keyd = \"unix://{socket}\"\n\
         [preloaded_keys]\ndevice-id = \"file://{device}\"\n",
        home = world.path("keyd/state"),
        socket = paths.keyd.display(),
        device = world.path("keyd/device-id").display(),
    );
    world.dir("keyd/state", users.keyd, 0o700)?;
    let rows = [
        // Module keys: identityd derives them, tells the hub, and lends their handles to runtimed.
        (
            users.identityd,
            "aziot_identityd_master_id",
            "\"sign-token\", \"derive\", \"export-derived\"",
            users.runtimed,
        ),
        (
            users.identityd,
            "device-id",
            "\"sign-token\"",
            users.identityd,
        ),
        // The Edge CA: identityd signs with the handle that runtimed names as issuer.
        (
            users.runtimed,
            "aziot-edged-ca",
            "\"sign-cert\"",
            users.identityd,
        ),
        (
            users.identityd,
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
            users.identityd,
            "holdfast_audit_identityd",
            "\"sign-cert\"",
            users.identityd,
        ),
        (
            users.runtimed,
            "holdfast_*",
            "\"derive\", \"sign-token\", \"sign-cert\"",
            users.runtimed,
        ),
    ];
    for (uid, keys, purposes, delegate) in rows {
        text.push_str(&format!(
            "[[principal]]\nuid = {uid}\nkeys = [{keys:?}]\npurposes = [{purposes}]\n\
             delegates = [{delegate}]\n"
        ));
    }
    world
        .file("config/keyd.toml", own(world), 0o644, text.as_bytes())
        .map(drop)
}

/// Configuration of `identityd`, for both of its APIs.
///
/// # Errors
/// As the system says.
pub(super) fn identityd(world: &World, hub: &HubFacts) -> io::Result<()> {
    let (users, paths) = (world.users, Paths::of(world));
    let endpoints = format!(
        "[endpoints]\naziot_keyd = \"unix://{}\"\naziot_certd = \"unix://{}\"\n\
         aziot_identityd = \"unix://{}\"\n",
        paths.keyd.display(),
        paths.certd.display(),
        paths.identityd.display()
    );
    let certificates = format!(
        "homedir_path = {:?}\nmax_requests = 64\n\
         [preloaded_certs]\naziot-edged-trust-bundle = [\"aziot-edged-ca\"]\n\
         [cert_issuance.aziot-edged-ca]\nmethod = \"self_signed\"\nexpiry_days = 90\n\
         [[principal]]\nuid = {}\ncerts = [\"aziot-edged-ca\", \"aziot-edged/module/*\"]\n{endpoints}",
        world.path("certd"),
        users.runtimed
    );
    world.file(
        "config/certd.toml",
        own(world),
        0o644,
        certificates.as_bytes(),
    )?;
    let mut identities = format!(
        "hostname = \"quickstart\"\nhomedir = {:?}\nmax_requests = 64\n\
         prefer_module_identity_cache = true\n\
         [provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://localhost:{}\"\n\
         scope_id = {:?}\ntrusted_certs = {:?}\n\
         allowed_hubs = [\"localhost\"]\n\
         [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = {DEVICE:?}\n\
         symmetric_key = \"device-id\"\n{endpoints}",
        world.path("identityd"),
        hub.https,
        hub.scope,
        paths.hub_roots
    );
    identities.push_str(&format!(
        "[[principal]]\nuid = {}\nname = \"aziot-edge\"\n",
        users.runtimed
    ));
    world
        .file(
            "config/identityd.toml",
            own(world),
            0o644,
            identities.as_bytes(),
        )
        .map(drop)
}

/// Configuration of `runtimed` and `warden`, and the grants of the modules.
///
/// # Errors
/// As the system says.
pub(super) fn runtimed(world: &World, hub: &HubFacts) -> io::Result<()> {
    let (users, paths) = (world.users, Paths::of(world));
    let runtimed = format!(
        "hostname = \"quickstart\"\nhomedir = {:?}\noperators = [{}]\n\
         [agent]\nname = \"edgeAgent\"\ntype = \"host\"\nconfig = {{ image = \"edgeAgent\" }}\n\
         [agent.env]\nHOLDFAST_HUB_MQTT = \"localhost:{}\"\nHOLDFAST_HUB_CA = {:?}\n\
         [listen]\nmanagement_uri = \"unix://{}\"\n\
         [endpoints]\naziot_keyd_url = \"unix://{}\"\naziot_certd_url = \"unix://{}\"\n\
         aziot_identityd_url = \"unix://{}\"\n\
         [warden]\nsocket = \"unix://{}\"\n",
        paths.runtimed,
        own(world),
        hub.mqtt,
        paths.hub_roots,
        paths.management.display(),
        paths.keyd.display(),
        paths.certd.display(),
        paths.identityd.display(),
        paths.warden.display(),
    );
    world.file(
        "config/runtimed.toml",
        own(world),
        0o644,
        runtimed.as_bytes(),
    )?;
    let minimum = users.modules[0].min(1000);
    let warden = format!(
        "socket = {:?}\nallowed_uids = [{}]\ngrants = {:?}\ncgroup_parent = {:?}\n\
         minimum_uid = {minimum}\n",
        paths.warden,
        users.runtimed,
        world.path("grants"),
        world.name()
    );
    debug_assert!(world.name().starts_with(PREFIX));
    world.file("config/warden.toml", own(world), 0o600, warden.as_bytes())?;
    for (index, name) in MODULES.iter().enumerate() {
        let program = if index == 0 {
            "holdfast-agent"
        } else {
            "holdfast-sample"
        };
        let path = world.path("bin").join(program);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(&path)?);
        let uid = users.modules[index];
        let gid = if users.separate { uid } else { users.services };
        let grant = format!(
            "executable = {path:?}\nsha256 = \"{}\"\nuid = {uid}\ngid = {gid}\n\
             read = [{:?}, \"/etc/hosts\", \"/etc/nsswitch.conf\", \"/etc/resolv.conf\", \
             \"/etc/host.conf\", \"/etc/gai.conf\"]\nnetwork = \"host\"\n",
            hex(digest.as_ref()),
            paths.hub_roots
        );
        world.file(
            &format!("grants/{name}.toml"),
            own(world),
            0o644,
            grant.as_bytes(),
        )?;
    }
    Ok(())
}

/// The deployment: two modules of one program that speak to each other and to the hub.
#[must_use]
pub(super) fn deployment(world: &World, hub: &HubFacts, port: u16) -> serde_json::Value {
    use serde_json::json;
    let roots = Paths::of(world).hub_roots.display().to_string();
    let hub = format!("localhost:{}", hub.mqtt);
    let module = |image: &str, extra: (&str, String)| {
        json!({
            "type": "host", "status": "running", "restartPolicy": "always",
            "settings": { "image": image },
            "env": {
                "HOLDFAST_HUB_MQTT": { "value": hub }, "HOLDFAST_HUB_CA": { "value": roots },
                (extra.0): { "value": extra.1 },
            },
        })
    };
    json!({ "modulesContent": {
        "$edgeAgent": { "properties.desired": {
            "schemaVersion": "1.1",
            "runtime": { "type": "docker", "settings": {} },
            "systemModules": {
                "edgeAgent": { "type": "host", "settings": { "image": "edgeAgent" } },
            },
            "modules": {
                MODULES[1]: module(MODULES[1], ("SAMPLE_SERVE", port.to_string())),
                MODULES[2]: module(MODULES[2], ("SAMPLE_CALL", format!("{}:{port}", MODULES[1]))),
            },
        } },
        "$edgeHub": { "properties.desired": { "schemaVersion": "1.1" } },
    } })
}
