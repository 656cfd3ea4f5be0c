//! The memory that a command names, as a controller finds it: by the rules of the specification, not by what the
//! driver is known to do.

use bulkhead_nvme::command::Status;

/// The reason why a command fails.
#[derive(Clone, Copy, Debug)]
pub struct Refused(pub Status);

const PAGE: u64 = 4096;

/// Returns the address and the length of each part of a command's data. `read` reads memory.
pub fn pages(
    [first, second]: [u64; 2],
    len: usize,
    read: impl Fn(u64, &mut [u8]) -> Result<(), Refused>,
) -> Result<Vec<(u64, usize)>, Refused> {
    let invalid = Refused(Status::INVALID_PRP_OFFSET.for_good());
    if !first.is_multiple_of(4) {
        return Err(invalid);
    }
    let in_first = len.min((PAGE - first % PAGE) as usize);
    let mut parts = vec![(first, in_first)];
    let mut left = len - in_first;
    let mut add = |address: u64, left: &mut usize| {
        if !address.is_multiple_of(PAGE) {
            return Err(invalid);
        }
        let part = (*left).min(PAGE as usize);
        parts.push((address, part));
        *left -= part;
        Ok(())
    };
    if left > 0 && left <= PAGE as usize {
        add(second, &mut left)?;
    }
    let mut list = second;
    while left > 0 {
        if !list.is_multiple_of(8) {
            return Err(invalid);
        }
        let mut entry = [0; 8];
        read(list, &mut entry)?;
        let address = u64::from_le_bytes(entry);
        // The last entry of a page leads to the next list, if there is more than one page left.
        if list % PAGE == PAGE - 8 && left > PAGE as usize {
            list = address;
            continue;
        }
        add(address, &mut left)?;
        list += 8;
    }
    Ok(parts)
}
