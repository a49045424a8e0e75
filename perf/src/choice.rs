//! What is run of what there is, as `--cases` and its like say.

use anyhow::{Result, bail};

/// Those of `known` that `wanted` names, in the order of `known`; all when it names none.
///
/// # Errors
/// There is none of a name.
pub fn chosen<'a, T>(
    wanted: &[String],
    known: &'a [T],
    name: impl Fn(&T) -> &str,
) -> Result<Vec<&'a T>> {
    let names: Vec<&str> = known.iter().map(&name).collect();
    if let Some(unknown) = wanted.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        bail!("there is no {unknown}: choose from {}", names.join(", "));
    }
    let is_chosen = |one: &&T| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name(one));
    Ok(known.iter().filter(is_chosen).collect())
}

/// The one of `known` that `wanted` names.
///
/// # Errors
/// There is none.
pub fn one_of<'a, T>(wanted: &str, known: &'a [T], name: impl Fn(&T) -> &str) -> Result<&'a T> {
    match chosen(&[wanted.to_owned()], known, name)?[..] {
        [one] => Ok(one),
        _ => bail!("two have the name {wanted}"),
    }
}
