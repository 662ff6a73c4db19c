//! The one source of random bytes.

/// The system returned no random bytes, so no secret can be made.
#[derive(Debug, thiserror::Error)]
#[error("the operating system returned no random bytes: {0}")]
pub struct RandomError(String);

/// `N` bytes from the operating system's generator.
#[allow(clippy::disallowed_methods)]
pub fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| RandomError(error.to_string()))?;
    Ok(bytes)
}
