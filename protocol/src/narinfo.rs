//! The text that describes one store path in a binary cache (Nix, `nar-info.cc`). It comes from a stranger:
//! what is kept of it is checked, and [`Narinfo::text`] writes nothing else.

use std::fmt::Write as _;

use crate::ids::{NIX_BASE32, StorePath};

/// The largest narinfo, in bytes: a system's derivation names thousands of others.
pub const MAX_NARINFO_BYTES: usize = 256 * 1024;
/// The largest archive, compressed and not, in bytes.
pub const MAX_NAR_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// The most signatures of one path, and the longest of them, and the longest content address, in bytes.
const MAX_SIGNATURES: usize = 16;
const MAX_WORD: usize = 512;
/// The compressions that Nix writes, each with the endings of its archives (`nar-info.cc`,
/// `binary-cache-store.cc`).
const COMPRESSIONS: [(&str, &[&str]); 9] = [
    ("none", &[""]),
    ("xz", &[".xz"]),
    ("bzip2", &[".bz2"]),
    ("zstd", &[".zst"]),
    ("br", &[".br"]),
    ("lz4", &[".lz4"]),
    ("lzip", &[".lzip"]),
    ("gzip", &[".gz", ""]),
    ("lzma", &[".lzma", ""]),
];

/// Why a narinfo is refused. The messages follow the name of the path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// It is not UTF-8.
    #[error("it is not text")]
    NotText,
    /// A line, counted from 1, is not `NAME: VALUE`.
    #[error("line {0} has no ': '")]
    Line(usize),
    /// A field that may appear once appears twice.
    #[error("{0} appears in it twice")]
    Twice(&'static str),
    /// A required field is absent.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A field, and a value that it may not have; at most 80 characters of it are kept.
    #[error("its {0} is '{1}'")]
    Value(&'static str, String),
    /// There are too many signatures.
    #[error("it has more than {MAX_SIGNATURES} signatures")]
    Signatures,
}

/// What a cache states about a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    /// The store path it describes.
    pub path: StorePath,
    /// The archive, at `nar/FILE`.
    pub file: NarFile,
    /// How the archive is compressed: `xz`, `zstd` or another name that Nix knows.
    pub compression: &'static str,
    /// Bytes of the archive as it is served; at least 1.
    pub file_size: u64,
    /// Hash of the uncompressed archive, `sha256:` and 52 digits of Nix's base 32.
    pub nar_hash: String,
    /// Bytes of the uncompressed archive; at least 1.
    pub nar_size: u64,
    /// The store paths it refers to, without `/nix/store/`, separated by spaces.
    pub references: String,
    /// The derivation that built it, without `/nix/store/`, or `unknown-deriver`.
    pub deriver: Option<String>,
    /// `NAME:BASE64` of each signature, as sent. Nix checks them, not this.
    pub signatures: Vec<String>,
    /// The content address (`fixed:…`, `text:…`) of a path that has one.
    pub ca: Option<String>,
}

/// The name of an archive: `HASH.nar` and the ending of its compression. HASH is the SHA-256 of the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NarFile(String);

impl NarFile {
    /// Reads a file name; `None` if it is not that of an archive, so that it is safe as a path segment.
    pub fn parse(name: &str) -> Option<Self> {
        let (hash, ending) = name.split_once(".nar")?;
        let known = COMPRESSIONS.iter().any(|(_, endings)| endings.contains(&ending));
        (is_base32(hash, 52) && known).then(|| Self(name.to_owned()))
    }
    /// The hash in the name, in Nix's base 32.
    pub fn hash(&self) -> &str {
        &self.0[..52]
    }
    /// The path in the cache, `nar/…`.
    pub fn key(&self) -> String {
        format!("nar/{}", self.0)
    }
    fn ending(&self) -> &str {
        &self.0[52 + ".nar".len()..]
    }
}

/// Whether a text is this many digits of Nix's base 32.
pub fn is_base32(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| NIX_BASE32.contains(&byte))
}

#[derive(Default)]
struct Fields<'a> {
    path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    ca: Option<&'a str>,
    signatures: Vec<&'a str>,
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
                "Compression" => ("Compression", &mut fields.compression),
                "FileHash" => ("FileHash", &mut fields.file_hash),
                "FileSize" => ("FileSize", &mut fields.file_size),
                "NarHash" => ("NarHash", &mut fields.nar_hash),
                "NarSize" => ("NarSize", &mut fields.nar_size),
                "References" => ("References", &mut fields.references),
                "Deriver" => ("Deriver", &mut fields.deriver),
                "CA" => ("CA", &mut fields.ca),
                "Sig" if fields.signatures.len() == MAX_SIGNATURES => return Err(NarinfoError::Signatures),
                "Sig" => {
                    fields.signatures.push(value);
                    continue;
                }
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
    /// Reads and checks a narinfo; unknown fields are dropped.
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
        let compression = need("Compression", fields.compression)?;
        let (compression, endings) = COMPRESSIONS
            .into_iter()
            .find(|(name, _)| *name == compression)
            .ok_or_else(|| wrong("Compression", compression))?;
        if !endings.contains(&file.ending()) {
            return Err(wrong("Compression", &format!("{compression}, and its URL {url}")));
        }
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
            let size = value.parse::<u64>().ok().filter(|size| (1..=MAX_NAR_BYTES).contains(size));
            size.ok_or_else(|| wrong(field, value))
        };
        let base = |name: &str| format!("/nix/store/{name}").parse::<StorePath>().is_ok();
        let references = need("References", fields.references)?;
        if let Some(bad) = references.split(' ').find(|name| !name.is_empty() && !base(name)) {
            return Err(wrong("References", bad));
        }
        if let Some(deriver) = fields.deriver.filter(|name| *name != "unknown-deriver" && !base(name)) {
            return Err(wrong("Deriver", deriver));
        }
        let word = |text: &str| text.len() <= MAX_WORD && text.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(ca) = fields.ca.filter(|ca| !word(ca)) {
            return Err(wrong("CA", ca));
        }
        if let Some(signature) = fields.signatures.iter().find(|signature| !word(signature)) {
            return Err(wrong("Sig", signature));
        }
        Ok(Self {
            path,
            file,
            compression,
            file_size: size("FileSize", fields.file_size)?,
            nar_hash: nar_hash.to_owned(),
            nar_size: size("NarSize", fields.nar_size)?,
            references: references.to_owned(),
            deriver: fields.deriver.map(str::to_owned),
            signatures: fields.signatures.into_iter().map(str::to_owned).collect(),
            ca: fields.ca.filter(|ca| !ca.is_empty()).map(str::to_owned),
        })
    }

    /// The narinfo in Nix's format.
    pub fn text(&self) -> String {
        let mut text = format!(
            "StorePath: {}\nURL: {}\nCompression: {}\nFileHash: sha256:{}\nFileSize: {}\n\
             NarHash: {}\nNarSize: {}\nReferences: {}\n",
            self.path,
            self.file.key(),
            self.compression,
            self.file.hash(),
            self.file_size,
            self.nar_hash,
            self.nar_size,
            self.references,
        );
        let deriver = self.deriver.iter().map(|deriver| ("Deriver", deriver));
        let signatures = self.signatures.iter().map(|signature| ("Sig", signature));
        let ca = self.ca.iter().map(|ca| ("CA", ca));
        for (name, value) in deriver.chain(signatures).chain(ca) {
            // Writing to a `String` does not fail.
            let _ = writeln!(text, "{name}: {value}");
        }
        text
    }

    /// Whether two narinfos describe the same content; compression and signatures may differ.
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
        // Some versions of Nix write no space after the colon of an empty list.
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
            ("FileSize: 12", "FileSize: 12\nFileSize: 13", "FileSize appears in it twice"),
            ("URL: nar/", "URL: file:///dev/zero#", "URL"),
            ("URL: nar/", "URL: /nar/", "URL"),
            ("Compression: zstd", "Compression: xz", "Compression"),
            ("Compression: zstd", "Compression: rot13", "Compression"),
            ("Compression: zstd\n", "", "Compression"),
            ("NarSize: 120", "NarSize: 18446744073709551615", "NarSize"),
            ("FileSize: 12", "FileSize: 99999999999999", "FileSize"),
            ("CA: text:", "CA: te xt:", "CA"),
            ("CA: ", "Sig: a b\nCA: ", "Sig"),
        ] {
            let error = Narinfo::parse(GOOD.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
        assert_eq!(Narinfo::parse(&[0xff]), Err(NarinfoError::NotText));
    }

    #[test]
    fn what_is_handed_on_is_what_was_checked_and_nothing_else() {
        let info = Narinfo::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(info.text(), GOOD);
        let signed = GOOD.replace("CA: ", "Sig: a-1:AAAA\nSig: b-1:BBBB\nCA: ");
        let more = format!("{signed}Evil: yes\nSystem: x86_64-linux\n");
        let info = Narinfo::parse(more.as_bytes()).unwrap();
        assert_eq!(info.text(), signed);
        assert_eq!(info.ca.as_deref().map(|ca| &ca[..5]), Some("text:"));
        let crowded = format!("{GOOD}{}", "Sig: a-1:AAAA\n".repeat(17));
        assert_eq!(Narinfo::parse(crowded.as_bytes()), Err(NarinfoError::Signatures));
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
