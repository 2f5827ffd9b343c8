//! "Did you mean ...?"

/// The name among `known` that is closest to `typed`, if one is close.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase();
    known
        .into_iter()
        .map(|name| (likeness(&typed, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// From 0 to 1. One slip of the finger is always close, also in a short name.
fn likeness(typed: &str, name: &str) -> f64 {
    let slips = strsim::osa_distance(typed, name);
    let one_slip = if slips <= 1 && name.len() > 1 { 0.9 } else { 0.0 };
    strsim::jaro_winkler(typed, name).max(one_slip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_close_and_nothing_else() {
        let known = ["kernel", "initrd", "append"];
        assert_eq!(nearest("kernal", known), Some("kernel"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest("kmv", ["kvm", "soft"]), Some("kvm"));
    }
}
