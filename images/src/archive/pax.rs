//! The records of a pax extended header: lines of `LENGTH KEY=VALUE`, the length counting all.

/// Returns the records, and a `None` where they stop being valid.
pub(super) fn records(data: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    let mut rest = data;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match split_record(rest) {
            Some((record, after)) => {
                rest = after;
                Some(Some(record))
            }
            None => {
                rest = &[];
                Some(None)
            }
        }
    })
}

/// A record, as key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().position(|&byte| byte == b' ')?;
    let length: usize = core::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some(((&body[..equals], &body[equals + 1..]), rest))
}
