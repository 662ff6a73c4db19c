//! Names, hashes and store paths at their limits.

use muster_protocol::ids::{
    Generation, IdError, MAX_NUMBER, MachineName, Sha256, Sha512, StorePath, Tag, from_hex, nix_base32,
    to_hex,
};
use serde_json::json;

const HASH: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";

#[test]
fn names_are_as_long_as_a_label_of_dns_and_no_longer() {
    for length in [1, 63] {
        let name: MachineName = "a".repeat(length).parse().unwrap();
        assert_eq!(
            (name.as_str().len(), name.to_string(), json!(name)),
            (length, "a".repeat(length), json!("a".repeat(length)))
        );
        assert_eq!(format!("{name:?}"), "a".repeat(length));
        assert!("a".repeat(length).parse::<Tag>().is_ok());
    }
    for bad in ["", &"a".repeat(64), ".a", "_a", "a/", "a\n", "ä"] {
        assert!(bad.parse::<MachineName>().is_err() && bad.parse::<Tag>().is_err(), "{bad}");
        assert!(serde_json::from_value::<MachineName>(json!(bad)).is_err(), "{bad}");
    }
}

#[test]
fn a_store_path_is_a_hash_a_dash_and_a_name() {
    let path =
        |hash: &str, dash: &str, name: &str| format!("/nix/store/{hash}{dash}{name}").parse::<StorePath>();
    for name in ["a", "a.b", "+-._?=9Z", &"a".repeat(211)] {
        let good = path(HASH, "-", name).unwrap();
        assert_eq!((good.hash_part(), good.name(), good.base()), (HASH, name, &*format!("{HASH}-{name}")));
        assert_eq!(good.to_string(), format!("/nix/store/{HASH}-{name}"));
        assert!(!good.is_derivation());
    }
    for (hash, dash, name) in [
        (HASH, "-", ""),
        (HASH, "-", &*"a".repeat(212)),
        (HASH, "_", "a"),
        (HASH, "-", ".a"),
        (HASH, "-", "a b"),
        (HASH, "-", "a/b"),
        (&HASH[1..], "-", "ab"),
        ("Oc0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl", "-", "a"),
        ("tc0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl", "-", "a"),
    ] {
        assert!(path(hash, dash, name).is_err(), "{hash}{dash}{name}");
    }
    assert!(format!("/nix/stoer/{HASH}-a").parse::<StorePath>().is_err());
    let derivation = path(HASH, "-", "a.drv").unwrap();
    assert_eq!(derivation.clone().require_derivation(), Ok(derivation));
    let other = path(HASH, "-", "a.drv.xz").unwrap();
    assert_eq!(other.clone().require_derivation(), Err(IdError::NotADerivation(other.to_string())));
}

#[test]
fn hexadecimal_digits_are_lower_case_and_exactly_enough() {
    let all: [u8; 256] = std::array::from_fn(|n| n as u8);
    let text = to_hex(&all);
    assert!(text.starts_with("000102") && text.contains("090a0b") && text.ends_with("fdfeff"));
    assert_eq!(from_hex::<256>(&text), Some(all));
    assert_eq!(from_hex::<2>("9a0f"), Some([0x9a, 0x0f]));
    for bad in ["", "9", "9a0", "9a0f0", "9A0F", "9a0g", "9a0/", "9a0:", "9a0`", " 9a0", "9é0"] {
        assert_eq!(from_hex::<2>(bad), None, "{bad}");
    }
    assert_eq!(from_hex::<0>(""), Some([]));
}

#[test]
fn a_hash_is_written_and_read_in_one_way() {
    let hash = Sha256::of(b"muster");
    // sha256sum
    assert_eq!(hash.hex(), "74cd18c016d902f940554dfd07545f219064b27fe6e890e9447f0c9e377903a8");
    assert_eq!(hash.short(), hash.hex()[..12]);
    assert_eq!(hash.to_string().parse::<Sha256>(), Ok(hash));
    assert_eq!(format!("{hash:?}"), hash.hex());
    assert_eq!(serde_json::from_value::<Sha256>(json!(hash)).unwrap(), hash);
    assert_eq!(Sha256::from_bytes(*hash.as_bytes()), hash);
    assert_ne!(Sha256::of(b"muster "), hash);
    for bad in ["", &hash.hex()[1..], &hash.hex().to_uppercase(), &format!("{hash}0")] {
        assert!(
            bad.parse::<Sha256>().is_err() && serde_json::from_value::<Sha256>(json!(bad)).is_err(),
            "{bad}"
        );
    }
    assert_eq!(Sha512::try_from("07".repeat(64)), Ok(Sha512([7; 64])));
    assert!(Sha512::try_from("07".repeat(32)).is_err());
}

/// `nix hash to-base32 --type sha256` of the hashes of these texts.
#[test]
fn base32_is_nixs_for_every_text() {
    for (text, base32) in [
        ("muster", "1a03g4vrw33z8klr1s76gyr69411bxa0gzadam0gj0nr2v01ikbl"),
        ("a", "1fs8xspqaxw0p5r4wz0lz3pqd9sdvhirmcriqbxcmg8vr89835ya"),
        ("The Update Framework", "0k2j53q4zpm1c7js1xm94r82br9s886r3szkf49qxkgvmjzi5y3j"),
        ("0123456789", "10kq5y49znxyjsgw21dgwrrxabwg4kq1c6prdgxiw16ly1vrin44"),
    ] {
        assert_eq!(nix_base32(&Sha256::of(text.as_bytes())), base32, "{text}");
    }
    assert_eq!(nix_base32(&Sha256::from_bytes([0xff; 32])), format!("1{}", "z".repeat(51)));
}

#[test]
fn generations_are_counted_up_to_the_last_number_and_not_beyond() {
    let last = Generation::new(MAX_NUMBER).unwrap();
    assert_eq!(Generation::FIRST.next().unwrap().get(), 2);
    assert_eq!(last.next(), Err(IdError::TooHigh(MAX_NUMBER + 1)));
    assert_eq!(
        (last.get(), last.to_string(), json!(last)),
        (1 << 48, "281474976710656".into(), json!(1u64 << 48))
    );
    assert_eq!(Generation::new(0), Err(IdError::Generation));
    assert_eq!(Generation::new(u64::MAX), Err(IdError::TooHigh(u64::MAX)));
    assert!(serde_json::from_value::<Generation>(json!(-1)).is_err());
}
