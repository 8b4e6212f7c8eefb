//! Zip archives of stored (uncompressed) entries, as torch writes them.

use bytes::Bytes;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

/// Entries by path, as ranges of the archive.
pub(super) fn entries(bytes: &Bytes) -> Result<Vec<(String, Bytes)>, String> {
    let (count, mut at) = directory(bytes)?;
    let mut out = Vec::new();
    for _ in 0..count {
        if u32_at(bytes, at)? != CENTRAL {
            return Err("the archive's directory is damaged".into());
        }
        let method = u16_at(bytes, at + 10)?;
        let mut packed = u64::from(u32_at(bytes, at + 20)?);
        let mut size = u64::from(u32_at(bytes, at + 24)?);
        let (n, m, k) = (
            len(bytes, at + 28)?,
            len(bytes, at + 30)?,
            len(bytes, at + 32)?,
        );
        let mut local = u64::from(u32_at(bytes, at + 42)?);
        let name = range(bytes, at + 46, n)?;
        let extra = range(bytes, at + 46 + n, m)?;
        zip64(&extra, &mut [&mut size, &mut packed, &mut local])?;
        let name = std::str::from_utf8(&name).map_err(|_| "an entry's name is not UTF-8")?;
        if method != 0 || packed != size {
            return Err(format!("`{name}` is compressed"));
        }
        out.push((name.to_owned(), content(bytes, local, size)?));
        at += 46 + n + m + k;
    }
    Ok(out)
}

/// Number of entries, and where the central directory begins.
fn directory(bytes: &Bytes) -> Result<(u64, usize), String> {
    let begin = bytes.len().saturating_sub(22 + 0xffff);
    let end = (begin..bytes.len().saturating_sub(21))
        .rev()
        .find(|&i| u32_at(bytes, i) == Ok(END))
        .ok_or("it is neither a zip archive nor a file of torch before 1.6")?;
    let mut count = u64::from(u16_at(bytes, end + 10)?);
    let mut at = u64::from(u32_at(bytes, end + 16)?);
    if let Some(locator) = end.checked_sub(20)
        && u32_at(bytes, locator)? == LOCATOR64
    {
        let record = usize::try_from(u64_at(bytes, locator + 8)?).map_err(|e| e.to_string())?;
        if u32_at(bytes, record)? != END64 {
            return Err("the archive's directory is damaged".into());
        }
        count = u64_at(bytes, record.saturating_add(32))?;
        at = u64_at(bytes, record.saturating_add(48))?;
    }
    Ok((count, usize::try_from(at).map_err(|e| e.to_string())?))
}

/// Replaces sizes that are all ones by those of the zip64 extra field.
fn zip64(extra: &Bytes, fields: &mut [&mut u64]) -> Result<(), String> {
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (id, n) = (u16_at(extra, at)?, len(extra, at + 2)?);
        if id == 1 {
            let mut inner = at + 4;
            for f in fields.iter_mut().filter(|f| ***f == 0xffff_ffff) {
                **f = u64_at(extra, inner)?;
                inner += 8;
            }
        }
        at += 4 + n;
    }
    Ok(())
}

fn content(bytes: &Bytes, local: u64, size: u64) -> Result<Bytes, String> {
    let local = usize::try_from(local).map_err(|e| e.to_string())?;
    let size = usize::try_from(size).map_err(|e| e.to_string())?;
    if u32_at(bytes, local)? != LOCAL {
        return Err("an entry is damaged".into());
    }
    let skip = 30 + len(bytes, local + 26)? + len(bytes, local + 28)?;
    range(bytes, local + skip, size)
}

fn range(bytes: &Bytes, at: usize, n: usize) -> Result<Bytes, String> {
    let end = at.checked_add(n).filter(|e| *e <= bytes.len());
    let end = end.ok_or("the archive is cut off")?;
    Ok(bytes.slice(at..end))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let found = bytes.get(at..).and_then(|b| b.first_chunk());
    found
        .copied()
        .ok_or_else(|| "the archive is cut off".to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn len(bytes: &[u8], at: usize) -> Result<usize, String> {
    u16_at(bytes, at).map(usize::from)
}

/// Contents begin at multiples of this, as torch has it.
const ALIGNMENT: usize = 64;

/// An archive with all entries in a folder `folder`.
pub(super) fn write(folder: &str, entries: &[(String, Bytes)]) -> Result<Vec<u8>, String> {
    let table = crc_table();
    let mut out = Vec::new();
    let mut central = Vec::new();
    for (name, content) in entries {
        let path = format!("{folder}/{name}");
        let size = u32::try_from(content.len()).map_err(|_| "a tensor has more than 4 GB")?;
        let offset = u32::try_from(out.len()).map_err(|_| "the file would have more than 4 GB")?;
        let name_len = u16::try_from(path.len()).map_err(|_| "a name is too long")?;
        // Time and date are zero: the same tensors give the same bytes. Bit 11: the name is UTF-8.
        let mut common = Vec::with_capacity(26);
        for field in [0u16, 0x0800, 0, 0, 0x21] {
            common.extend(field.to_le_bytes());
        }
        for field in [crc(&table, content), size, size] {
            common.extend(field.to_le_bytes());
        }
        common.extend(name_len.to_le_bytes());
        let begin = out.len() + 30 + path.len();
        let padding = (begin + 4).next_multiple_of(ALIGNMENT) - begin - 4;
        out.extend(LOCAL.to_le_bytes());
        out.extend(&common);
        out.extend((padding as u16 + 4).to_le_bytes());
        out.extend(path.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.extend(std::iter::repeat_n(b'Z', padding));
        out.extend(&content[..]);
        central.extend(CENTRAL.to_le_bytes());
        central.extend([0, 0]);
        central.extend(&common);
        // Extra field, comment, disk, internal and external attributes.
        central.extend([0; 12]);
        central.extend(offset.to_le_bytes());
        central.extend(path.as_bytes());
    }
    let begin = u32::try_from(out.len()).map_err(|_| "the file would have more than 4 GB")?;
    let count = u16::try_from(entries.len()).map_err(|_| "more than 65,535 tensors")?;
    out.extend(&central);
    out.extend(END.to_le_bytes());
    for field in [0u16, 0, count, count] {
        out.extend(field.to_le_bytes());
    }
    for field in [central.len() as u32, begin] {
        out.extend(field.to_le_bytes());
    }
    out.extend([0, 0]);
    Ok(out)
}

fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    for (i, entry) in table.iter_mut().enumerate() {
        let mut c = i as u32;
        for _ in 0..8 {
            c = if c & 1 == 1 {
                0xedb8_8320 ^ (c >> 1)
            } else {
                c >> 1
            };
        }
        *entry = c;
    }
    table
}

fn crc(table: &[u32; 256], bytes: &[u8]) -> u32 {
    let step = |c: u32, b: &u8| table[((c ^ u32::from(*b)) & 0xff) as usize] ^ (c >> 8);
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_standard_ones() {
        assert_eq!(crc(&crc_table(), b"123456789"), 0xcbf4_3926);
    }
}
