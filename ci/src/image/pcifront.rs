//! Linux's frontend of PCI devices, mended for NVMe controllers.
//!
//! Linux's NVMe driver has MSI-X enabled, disabled, and enabled again with more vectors. When the frontend is told to
//! disable it, the kernel has already forgotten whether it was MSI or MSI-X, and asks the backend to disable MSI. So the
//! backend refuses to enable MSI-X for the second time, and the driver falls back to the one interrupt of old PCI, which
//! reaches dom0 as well. The mended frontend disables MSI-X. Devices that have MSI alone would keep it.

/// The instruction that writes what is to be done into a request on the stack (`movl`), up to the number.
const WRITE: [u8; 3] = [0xc7, 0x04, 0x24];

/// `XEN_PCI_OP_disable_msi` and `XEN_PCI_OP_disable_msix` (Xen's io/pciif.h).
const DISABLE_MSI: [u8; 4] = 3_u32.to_le_bytes();
const DISABLE_MSIX: [u8; 4] = 5_u32.to_le_bytes();

/// The end of a signed module.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// What lies before it: a structure whose last four bytes are the length of the signature before it, in big endian.
const STRUCTURE: usize = 12;

/// The name of its file, after which those of archives go.
pub(super) const FILE: &str = "xen-pcifront.ko";

/// Returns the module mended and without its signature, or nothing where it is made in another way than is known here.
pub(super) fn mended(module: &[u8]) -> Option<Vec<u8>> {
    let mut module = unsigned(module)?.to_vec();
    let wanted = [&WRITE[..], &DISABLE_MSI].concat();
    let mut found = module
        .windows(wanted.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == wanted);
    let ((at, _), None) = (found.next()?, found.next()) else {
        return None;
    };
    let at = at + WRITE.len();
    module[at..at + DISABLE_MSIX.len()].copy_from_slice(&DISABLE_MSIX);
    Some(module)
}

fn unsigned(module: &[u8]) -> Option<&[u8]> {
    let Some(rest) = module.strip_suffix(SIGNED) else {
        return Some(module);
    };
    let (rest, structure) = rest.split_at_checked(rest.len().checked_sub(STRUCTURE)?)?;
    let length = u32::from_be_bytes(*structure.last_chunk()?) as usize;
    rest.get(..rest.len().checked_sub(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(requests: &[u8]) -> Vec<u8> {
        let mut module = b"\x7fELF code".to_vec();
        for &request in requests {
            module.extend(WRITE);
            module.extend(u32::from(request).to_le_bytes());
            module.extend(b"more");
        }
        module
    }

    #[test]
    fn msix_is_disabled_in_the_place_of_msi() {
        assert_eq!(mended(&module(&[2, 3, 4])), Some(module(&[2, 5, 4])));
    }

    #[test]
    fn a_module_that_is_made_in_another_way_stays_as_it_is() {
        assert_eq!(mended(&module(&[2, 4])), None);
        assert_eq!(mended(&module(&[3, 3])), None);
    }

    #[test]
    fn the_signature_goes() {
        let mut signed = module(&[3]);
        signed.extend(b"signature");
        signed.extend([0; STRUCTURE - 4]);
        signed.extend(9_u32.to_be_bytes());
        signed.extend(SIGNED);
        assert_eq!(mended(&signed), Some(module(&[5])));
        // A length that cannot be.
        let mut broken = SIGNED.to_vec();
        broken.splice(0..0, [0xff; STRUCTURE]);
        assert_eq!(mended(&broken), None);
    }
}
