//! Lists of names in sentences.

use std::fmt::Display;

/// The most names that are listed.
const SHOWN: usize = 20;

/// The names separated by commas; `none` if empty, and `and N more` beyond a limit.
pub fn listed<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    match all.len() {
        0 => "none".to_owned(),
        count if count <= SHOWN => all.join(", "),
        count => format!("{} and {} more", all[..SHOWN].join(", "), count - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn a_long_list_ends_with_how_many_more_there_are() {
        assert_eq!(listed([] as [&str; 0]), "none");
        assert_eq!(listed(["tin", "lead"]), "tin, lead");
        assert!(listed(0..22).ends_with("18, 19 and 2 more"), "{}", listed(0..22));
    }
}
