//! The machine, as the agent reports it to the hub (operation 15).

use contract::api::management::{self as api, ProvisioningFlags, SystemInfo};
use contract::endpoint::Ask;
use contract::refusal::Refusal;

use crate::gate::{ManagementSocket, Manager};

/// The machine.
///
/// # Errors
/// None.
pub fn read(
    _: &ManagementSocket,
    _: &Manager,
    _: Ask<api::ReadSystemInfo>,
) -> Result<SystemInfo, Refusal> {
    let uname = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let firmware = |name: &str| {
        let path = format!("/sys/devices/virtual/dmi/id/{name}");
        std::fs::read_to_string(path)
            .ok()
            .map(|value| value.trim().to_owned())
    };
    Ok(SystemInfo {
        os_type: text(uname.sysname()),
        kernel_release: Some(text(uname.release())),
        kernel_version: Some(text(uname.version())),
        operating_system: os_release(&release, "ID"),
        operating_system_version: os_release(&release, "VERSION_ID"),
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        total_memory: total_memory(),
        virtualized: "unknown".to_owned(),
        product_name: firmware("product_name"),
        system_vendor: firmware("sys_vendor"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_version: None,
        provisioning: ProvisioningFlags {
            kind: "ProvisioningType".to_owned(),
            dynamic_reprovisioning: false,
            always_reprovision_on_startup: false,
        },
    })
}

fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release(text, "VARIANT_ID"), None);
    }
}
