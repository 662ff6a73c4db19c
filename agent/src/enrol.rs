//! `muster-agent enrol -`: the machine checks the fleet's root against the token, then presents its own keys.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_protocol::api;
use muster_protocol::clock::UnixMillis;
use muster_protocol::enrol::{EnrolError, EnrolRequest, Enrolling, Pin, Token};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::machine::{Class, MachineError, System};
use muster_protocol::report::EventKind;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;

use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::durable;
use crate::identity::{self, Enrolment, Identity, IdentityError, Keys, pem_of, save_witness};
use crate::outbox::{self, Outbox, OutboxError};
use crate::surroundings::Proxies;
use crate::trust;

/// The largest root that is accepted from a controller.
const MAX_ROOT_BYTES: u64 = 512 * 1024;
/// Holds an unfinished enrolment; the replaced identity stays in force meanwhile.
const PENDING: &str = "enrolling";
/// The unanswered check-in.
const CHECK_IN: &str = crate::runner::UNANSWERED;
/// State that belongs to one machine of one fleet and is useless to another.
const OF_THE_OLD_MACHINE: [&str; 5] =
    [trust::FOLDER, outbox::FOLDER, "journal.json", "confirmation.json", "activation.json"];

#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error(transparent)]
    Token(#[from] EnrolError),
    #[error("the token contradicts itself: its first root is not its fleet; make a new token")]
    Contradiction,
    #[error("this machine is already enrolled as {0}: use --replace to replace that with a new token")]
    AlreadyEnrolled(MachineName),
    #[error("a switch to another system is under way: wait until it has ended, then enrol again")]
    Switching,
    #[error("the token is for a machine of class {token}, but this is {found}: make a token for {found}")]
    WrongClass { token: Class, found: &'static str },
    #[error(
        "this machine is neither NixOS nor a Mac (there is no /etc/NIXOS and no /run/current-system), so \
         Muster has nothing to switch here"
    )]
    NoClass,
    #[error(transparent)]
    System(#[from] MachineError),
    #[error(
        "the controller does not know root {version} of the fleet: check that the token is for this \
         controller ({url})"
    )]
    NoRoot { version: u64, url: String },
    #[error(
        "the root that {url} gives is not the one in the token (it is {found}, the token wants {wanted}): do not trust \
         this controller; nothing was sent to it. Ask the operator for a new token"
    )]
    RootMismatch { url: String, wanted: String, found: String },
    #[error("the root is the token's, but it is not usable: {0}; ask the operator for a new token")]
    BadRoot(TufError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Disk { path: PathBuf, source: io::Error },
}

/// What this machine is now.
#[derive(Debug, Clone)]
pub struct Enrolled {
    pub machine: MachineName,
    pub class: Class,
    pub url: String,
    /// The recipient of its secrets.
    pub age: String,
}

/// Enrols this machine. Afterwards it is enrolled, or as it was before.
pub async fn enrol(
    config: &Config,
    token: &str,
    replace: bool,
    now: UnixMillis,
) -> Result<Enrolled, EnrolmentError> {
    let token = Token::decode(token)?;
    if token.root_version == 1 && token.root != token.fleet {
        return Err(EnrolmentError::Contradiction);
    }
    let system = system_for(config, token.class)?;
    prepare_state(&config.state_dir)?;
    finish(config)?;
    if !replace && let Some(identity) = Identity::load(config)? {
        return Err(EnrolmentError::AlreadyEnrolled(identity.machine));
    }
    if config.state("transaction.json").exists() {
        return Err(EnrolmentError::Switching);
    }
    if token.expires.saturating_mul(1000) < now {
        // The controller's clock decides; this one may be off by years on a new machine.
        tracing::warn!("by this machine's clock the token has expired; asking the controller all the same");
    }
    let proxies = Proxies::of(config);
    let (client, pinned) = match token.pin() {
        Some(Pin::Hash(hash)) => {
            let (client, pinned) = Client::anonymous_pinned(&token.url, &hash, &proxies)?;
            (client, Some(pinned))
        }
        Some(Pin::Certificate(der)) => {
            (Client::anonymous_by(&token.url, Some(&pem_of(&der)), &proxies)?, None)
        }
        None => (Client::anonymous_by(&token.url, None, &proxies)?, None),
    };
    let root = fetch_root(&client, &token).await?;
    // The certificate authority of the controller's first answer is pinned for good.
    let tls_ca = match pinned {
        Some(pinned) => pinned.authority(),
        None => token.tls_ca.clone(),
    };

    // One folder per token: if an answer was lost, the same token is tried again with the same keys, which
    // the controller grants again; another token gets new ones.
    let pending = config.state(PENDING).join(token.secret.token_id().short());
    make_folder(&pending)?;
    let keys = Keys::load_or_make(&pending)?;
    save_witness(&pending, &token.secret.witness())?;
    let age = keys.recipient();
    let enrolling =
        Enrolling { system: system.clone(), age: age.clone(), agent: env!("CARGO_PKG_VERSION").into() };
    let request = EnrolRequest::make(&token, &keys.machine, enrolling);
    client.enrol(&request).await?;

    let enrolment = Enrolment {
        version: Enrolment::version(),
        machine: token.machine.clone(),
        class: token.class,
        system,
        fleet: token.fleet,
        url: client.url().to_owned(),
        lowest_generation: token.lowest_generation,
        tls_ca,
        enrolled_at: now,
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = pending.join(name);
        durable::write(&path, bytes, 0o600).map_err(|source| EnrolmentError::Disk { path, source })
    };
    write(trust::ROOT, &root)?;
    // From here on the machine is enrolled, whatever happens: the rest is repeated at the next start.
    Identity::save(&pending, &enrolment)?;
    finish(config)?;
    Ok(Enrolled { machine: token.machine.clone(), class: token.class, url: client.url().to_owned(), age })
}

/// Puts a granted enrolment in force. Called again after a crash it continues where it was.
pub fn finish(config: &Config) -> Result<(), EnrolmentError> {
    let pending = config.state(PENDING);
    let disk = |path: &Path| {
        let path = path.to_path_buf();
        move |source| EnrolmentError::Disk { path, source }
    };
    let folders = match fs::read_dir(&pending) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folders => folders.map_err(disk(&pending))?,
    };
    for folder in folders {
        let folder = folder.map_err(disk(&pending))?.path();
        let Some(new) = Identity::enrolment(&folder)? else { continue };
        let state = &config.state_dir;
        let old = Identity::enrolment(state).ok().flatten();
        // The old machine's floors do not apply to a different one; the same machine keeps its floors.
        let another = old.as_ref().is_none_or(|old| (old.fleet, &old.machine) != (new.fleet, &new.machine));
        if another {
            for name in OF_THE_OLD_MACHINE {
                remove(&state.join(name)).map_err(disk(&state.join(name)))?;
            }
        }
        let metadata = state.join(trust::FOLDER);
        make_folder(&metadata)?;
        let root = metadata.join(trust::ROOT);
        if !root.exists() {
            let bytes = durable::read(&folder.join(trust::ROOT), MAX_ROOT_BYTES).map_err(disk(&folder))?;
            durable::write(&root, &bytes.unwrap_or_default(), 0o600).map_err(disk(&root))?;
        }
        // A pending next key of the old enrolment would try to replace the new key, and an unanswered
        // check-in belongs to the old enrolment.
        identity::forget_other_keys(state)?;
        let said = state.join(CHECK_IN);
        remove(&said).map_err(disk(&said))?;
        Keys::install(&folder, state)?;
        if another || old.is_none_or(|old| old.enrolled_at != new.enrolled_at) {
            let mut outbox = Outbox::open(&state.join(outbox::FOLDER), new.enrolled_at)?;
            outbox.push(
                new.enrolled_at,
                None,
                EventKind::Enrolled { agent: env!("CARGO_PKG_VERSION").into() },
            )?;
        }
        Identity::save(state, &new)?;
        // Folders of tokens that were never granted stay for another try until one is.
        return remove(&pending).map_err(disk(&pending));
    }
    Ok(())
}

async fn fetch_root(client: &Client, token: &Token) -> Result<Vec<u8>, EnrolmentError> {
    let url = client.url().to_owned();
    let root = client.get(&api::root_path(token.root_version), MAX_ROOT_BYTES).await?;
    let root = root.ok_or(EnrolmentError::NoRoot { version: token.root_version, url: url.clone() })?;
    let found = Sha256::of(&root);
    if found != token.root {
        return Err(EnrolmentError::RootMismatch { url, wanted: token.root.short(), found: found.short() });
    }
    Root::parse_self_signed(&root).map_err(EnrolmentError::BadRoot)?;
    Ok(root)
}

/// The Nix system of this machine, if it has the token's class.
fn system_for(config: &Config, class: Class) -> Result<System, EnrolmentError> {
    if let Some(stand_in) = &config.stand_in {
        if stand_in.system.class() != class {
            let found = stand_in.system.class().as_str();
            return Err(EnrolmentError::WrongClass { token: class, found });
        }
        return Ok(stand_in.system.clone());
    }
    let found = match std::env::consts::OS {
        "macos" => Class::Darwin,
        "linux" if Path::new("/etc/NIXOS").exists() || Path::new("/run/current-system").exists() => {
            Class::Nixos
        }
        _ => return Err(EnrolmentError::NoClass),
    };
    if found != class {
        return Err(EnrolmentError::WrongClass { token: class, found: found.as_str() });
    }
    Ok(format!("{}-{}", std::env::consts::ARCH, class.kernel()).parse()?)
}

/// Only root may access the state folder.
pub fn prepare_state(folder: &Path) -> Result<(), EnrolmentError> {
    make_folder(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(|source| EnrolmentError::Disk { path: folder.to_path_buf(), source })
}

fn make_folder(folder: &Path) -> Result<(), EnrolmentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| EnrolmentError::Disk { path: folder.to_path_buf(), source })
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
