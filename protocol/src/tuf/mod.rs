//! The Update Framework: metadata, canonical JSON, the verifying client and the signing side.
