//! The text that describes one store path in a binary cache (Nix, `nar-info.cc`), read only as far as it is checked.

use muster_protocol::ids::{NIX_BASE32, StorePath};

/// The largest narinfo, in bytes.
pub const MAX_NARINFO_BYTES: usize = 64 * 1024;
/// The endings of a nar's name that Nix writes, by compression (`nar-info.cc`, `binary-cache-store.cc`).
const ENDINGS: [&str; 9] = ["", ".xz", ".bz2", ".zst", ".gz", ".br", ".lz4", ".lzip", ".lzma"];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    #[error("it is not text")]
    NotText,
    #[error("line {0} has no ': '")]
    Line(usize),
    #[error("{0} stands in it twice")]
    Twice(&'static str),
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("its {0} is '{1}'")]
    Value(&'static str, String),
}

/// What the cache checks of a narinfo; the rest is Nix's to read.
#[derive(Debug, PartialEq, Eq)]
pub struct Narinfo {
    pub path: StorePath,
    /// `nar/FILE`.
    pub file: NarFile,
    pub file_size: u64,
    pub nar_hash: String,
    pub nar_size: u64,
}

/// `HASH.nar`, and its compression's ending: named by the SHA-256 of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarFile(String);

impl NarFile {
    pub fn parse(name: &str) -> Option<Self> {
        let (hash, ending) = name.split_once(".nar")?;
        (is_base32(hash, 52) && ENDINGS.contains(&ending)).then(|| Self(name.to_owned()))
    }
    /// The hash in its name, in Nix's base 32.
    pub fn hash(&self) -> &str {
        &self.0[..52]
    }
    /// Its name in the cache.
    pub fn key(&self) -> String {
        format!("nar/{}", self.0)
    }
}

/// Whether a text is so many digits of Nix's base 32.
pub fn is_base32(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| NIX_BASE32.contains(&byte))
}

#[derive(Default)]
struct Fields<'a> {
    path: Option<&'a str>,
    url: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, NarinfoError> {
        let mut fields = Self::default();
        for (number, line) in text.lines().enumerate() {
            let (name, value) = line
                .split_once(": ")
                .or_else(|| Some((line.strip_suffix(':')?, "")))
                .ok_or(NarinfoError::Line(number + 1))?;
            let (name, field) = match name {
                "StorePath" => ("StorePath", &mut fields.path),
                "URL" => ("URL", &mut fields.url),
                "FileHash" => ("FileHash", &mut fields.file_hash),
                "FileSize" => ("FileSize", &mut fields.file_size),
                "NarHash" => ("NarHash", &mut fields.nar_hash),
                "NarSize" => ("NarSize", &mut fields.nar_size),
                "References" => ("References", &mut fields.references),
                "Deriver" => ("Deriver", &mut fields.deriver),
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err(NarinfoError::Twice(name));
            }
        }
        Ok(fields)
    }
}

impl Narinfo {
    pub fn parse(bytes: &[u8]) -> Result<Self, NarinfoError> {
        let text = std::str::from_utf8(bytes).map_err(|_| NarinfoError::NotText)?;
        let fields = Fields::read(text)?;
        let wrong = |field, value: &str| NarinfoError::Value(field, value.chars().take(80).collect());
        fn need<'a>(field: &'static str, value: Option<&'a str>) -> Result<&'a str, NarinfoError> {
            value.ok_or(NarinfoError::Missing(field))
        }

        let path = need("StorePath", fields.path)?;
        let path: StorePath = path.parse().map_err(|_| wrong("StorePath", path))?;
        let url = need("URL", fields.url)?;
        let file = url.strip_prefix("nar/").and_then(NarFile::parse).ok_or_else(|| wrong("URL", url))?;
        let file_hash = need("FileHash", fields.file_hash)?;
        if file_hash.strip_prefix("sha256:") != Some(file.hash()) {
            return Err(wrong("FileHash", file_hash));
        }
        let nar_hash = need("NarHash", fields.nar_hash)?;
        if !nar_hash.strip_prefix("sha256:").is_some_and(|hash| is_base32(hash, 52)) {
            return Err(wrong("NarHash", nar_hash));
        }
        let size = |field, value| {
            let value = need(field, value)?;
            value.parse::<u64>().ok().filter(|size| *size > 0).ok_or_else(|| wrong(field, value))
        };
        let base = |name: &str| format!("/nix/store/{name}").parse::<StorePath>().is_ok();
        let references = need("References", fields.references)?;
        if let Some(bad) = references.split_ascii_whitespace().find(|name| !base(name)) {
            return Err(wrong("References", bad));
        }
        if let Some(deriver) = fields.deriver.filter(|name| *name != "unknown-deriver" && !base(name)) {
            return Err(wrong("Deriver", deriver));
        }
        Ok(Self {
            path,
            file,
            file_size: size("FileSize", fields.file_size)?,
            nar_hash: nar_hash.to_owned(),
            nar_size: size("NarSize", fields.nar_size)?,
        })
    }

    /// Whether two narinfos speak of the same content; compression and signatures may differ.
    pub fn same_content(&self, other: &Self) -> bool {
        self.path == other.path && self.nar_hash == other.nar_hash && self.nar_size == other.nar_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "StorePath: /nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-hello.drv
URL: nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.zst
Compression: zstd
FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
FileSize: 12
NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
NarSize: 120
References: 1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-bash.drv
CA: text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
";

    #[test]
    fn what_nix_writes_is_read() {
        let info = Narinfo::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(info.path.name(), "hello.drv");
        assert_eq!((info.file_size, info.nar_size), (12, 120));
        // Nix writes no blank after the colon of an empty list in some versions.
        for empty in ["References: \n", "References:\n"] {
            let text = GOOD.replace("References: 1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-bash.drv\n", empty);
            assert!(Narinfo::parse(text.as_bytes()).is_ok());
        }
    }

    #[test]
    fn every_wrong_line_is_refused_by_name() {
        for (from, to, want) in [
            ("StorePath: /nix/store/", "StorePath: /nix/stoer/", "StorePath"),
            ("URL: nar/", "URL: ../", "URL"),
            ("URL: nar/", "URL: https://elsewhere/nar/", "URL"),
            (".nar.zst", ".nar.exe", "URL"),
            ("FileHash: sha256:0m", "FileHash: sha256:1m", "FileHash"),
            ("FileSize: 12", "FileSize: 0", "FileSize"),
            ("FileSize: 12", "FileSize: -1", "FileSize"),
            ("NarHash: sha256:", "NarHash: md5:", "NarHash"),
            ("NarSize: 120\n", "", "NarSize"),
            ("-bash.drv", "/../../etc", "References"),
            ("Compression: zstd", "Compression", "line 3"),
            ("FileSize: 12", "FileSize: 12\nFileSize: 13", "FileSize stands in it twice"),
        ] {
            let error = Narinfo::parse(GOOD.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
        assert_eq!(Narinfo::parse(&[0xff]), Err(NarinfoError::NotText));
    }

    #[test]
    fn a_nar_is_named_by_a_hash() {
        let hash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        assert!(NarFile::parse(&format!("{hash}.nar")).is_some());
        for bad in [".nar", "x.nar", "..nar", &format!("{hash}.nar.zst.zst"), &format!("{hash}.nar#1"), hash]
        {
            assert!(NarFile::parse(bad).is_none(), "{bad}");
        }
    }
}
