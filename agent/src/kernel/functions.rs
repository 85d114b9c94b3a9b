//! Network functions of PCI cards that may be handed to guests, by what sysfs says.

use std::fs;
use std::io;
use std::path::Path;

/// Where sysfs is.
pub const SYSFS: &str = "/sys";

/// Class of network controllers (`PCI_BASE_CLASS_NETWORK`).
const NETWORK: u32 = 0x02;

/// A function of a PCI network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its address, such as `0000:3b:02.1`.
    pub address: String,
    /// The driver that holds it.
    pub driver: Option<String>,
    /// Virtual functions that it has now.
    pub virtual_functions: u32,
}

impl Function {
    /// Whether a program holds it in the kernel's stead, as QEMU does for a guest.
    #[must_use]
    pub fn is_handed_on(&self) -> bool {
        self.driver
            .as_deref()
            .is_some_and(|it| it.starts_with("vfio"))
    }
}

/// The network functions of this machine, by address; none where it has no PCI bus.
///
/// # Errors
/// When sysfs, mounted at `sysfs`, cannot be read.
pub fn functions(sysfs: &Path) -> io::Result<Vec<Function>> {
    let mut functions = Vec::new();
    let Some(devices) = absent(fs::read_dir(sysfs.join("bus/pci/devices")))? else {
        return Ok(functions);
    };
    for device in devices {
        let device = device?;
        // It may be taken out while it is looked at.
        let Some(class) = absent(fs::read_to_string(device.path().join("class")))? else {
            continue;
        };
        if hexadecimal(&class).map(|class| class >> 16) != Some(NETWORK) {
            continue;
        }
        let driver = absent(fs::read_link(device.path().join("driver")))?;
        let driver = driver.as_deref().and_then(Path::file_name);
        let virtual_functions = absent(fs::read_to_string(device.path().join("sriov_numvfs")))?;
        functions.push(Function {
            address: device.file_name().to_string_lossy().into_owned(),
            driver: driver.map(|name| name.to_string_lossy().into_owned()),
            virtual_functions: match virtual_functions {
                None => 0,
                Some(text) => text.trim().parse().map_err(io::Error::other)?,
            },
        });
    }
    functions.sort_by(|one, other| one.address.cmp(&other.address));
    Ok(functions)
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn absent<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
