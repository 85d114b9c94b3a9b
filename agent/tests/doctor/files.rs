//! How files of the machine are read that this one may not have: cards, guests, services.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use gate25::kernel::functions::{Function, functions};
use gate25::kernel::services::enabled;

#[test]
fn network_functions_are_found_among_the_devices_of_the_bus() {
    let sysfs = tempfile::tempdir().unwrap();
    let device = |address: &str, class: &str, driver: Option<&str>, functions: Option<&str>| {
        let folder = sysfs.path().join("bus/pci/devices").join(address);
        write(&folder.join("class"), class);
        if let Some(driver) = driver {
            symlink(format!("../../../drivers/{driver}"), folder.join("driver")).unwrap();
        }
        if let Some(functions) = functions {
            write(&folder.join("sriov_numvfs"), functions);
        }
    };
    device("0000:3b:02.1", "0x020000\n", Some("vfio-pci"), None);
    device("0000:3b:00.0", "0x020000\n", Some("mlx5_core"), Some("8\n"));
    device("0000:01:00.0", "0x030000\n", Some("vfio-pci"), None);
    device("0000:04:00.0", "0x020000\n", None, Some("0\n"));
    let found = functions(sysfs.path()).unwrap();
    let expected = |address: &str, driver: Option<&str>, virtual_functions| Function {
        address: address.to_owned(),
        driver: driver.map(str::to_owned),
        virtual_functions,
    };
    assert_eq!(
        found,
        [
            expected("0000:04:00.0", None, 0),
            expected("0000:3b:00.0", Some("mlx5_core"), 8),
            expected("0000:3b:02.1", Some("vfio-pci"), 0),
        ]
    );
    let handed_on: Vec<bool> = found.iter().map(Function::is_handed_on).collect();
    assert_eq!(handed_on, [false, false, true]);
}

#[test]
fn machine_without_a_bus_has_no_functions() {
    let sysfs = tempfile::tempdir().unwrap();
    assert_eq!(functions(sysfs.path()).unwrap(), []);
}

#[test]
fn services_are_enabled_by_the_links_of_what_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("sysinit.target.wants/nftables.service"),
        "",
    );
    write(&folder.path().join("a.target.requires/ufw.service"), "");
    write(&folder.path().join("firewalld.service"), "");
    let nowhere = folder.path().join("nowhere");
    let found = enabled([folder.path(), &nowhere]).unwrap();
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["nftables.service", "ufw.service"]);
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
