//! How much work a schema may be, found out before a payload is checked.
//!
//! A schema that refers to itself is applied again at each level of a payload. If
//! it does so in two ways at once, as `anyOf` of two references does, the work
//! doubles with each level. Such schemas are common and useful, for trees and
//! expressions, so they are taken; but for each payload it is known beforehand how
//! often a subschema may be applied to each of its places, and a payload that would
//! be too much work is refused. It is an upper bound: no branch is assumed to be
//! left early.
//!
//! A schema that leads back to itself without going a level deeper says nothing:
//! validators stop there and take everything for valid. It is refused.

use std::collections::HashMap;

use serde_json::Value;

/// How many subschemas one schema may have.
const SUBSCHEMAS_MAX: usize = 20_000;

/// The crate remembers what a recursive reference came to for each array and object
/// once it was dear. What it does not remember is repeated so often at most.
const REPEATED: f64 = 8.0;

/// How often subschemas may be applied to one place in a payload, by how deep it is.
#[derive(Clone, Debug)]
pub struct Work {
    /// To find out whether it fits.
    pub valid: Vec<f64>,
    /// To find out, for one that does not, where and why.
    pub explained: Vec<f64>,
}

/// How many places there are in a payload at each level; each counts once and once
/// more for some bytes of text.
pub fn places(document: &Value) -> Vec<f64> {
    /// A byte of text costs about so much less than a subschema.
    const BYTES_PER_CHECK: f64 = 16.0;
    let mut places = vec![];
    let mut level = vec![document];
    while !level.is_empty() {
        let mut weight = 0.0;
        let mut next = vec![];
        for value in level {
            weight += 1.0;
            match value {
                Value::String(text) => weight += text.len() as f64 / BYTES_PER_CHECK,
                Value::Array(members) => next.extend(members),
                Value::Object(members) => {
                    weight += members.len() as f64;
                    let keys: usize = members.keys().map(String::len).sum();
                    weight += keys as f64 / BYTES_PER_CHECK;
                    next.extend(members.values());
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        places.push(weight);
        level = next;
    }
    places
}

/// How many checks these places may need.
pub fn checks(places: &[f64], per_place: &[f64]) -> f64 {
    // Deeper than the schema was looked at no payload goes.
    let last = per_place.last().copied().unwrap_or_default();
    let per_place = per_place.iter().copied().chain(std::iter::repeat(last));
    places.iter().zip(per_place).map(|(places, checks)| places * checks).sum()
}

/// Looks at a schema, for payloads of this depth.
///
/// # Errors
///
/// It leads back to itself on one level, or out of itself.
pub fn of(schema: &Value, depth_max: usize) -> Result<Work, String> {
    let mut graph = Graph { root: schema, names: names(schema), ..Graph::default_of(schema) };
    graph.add(String::new())?;
    let mut at = 0;
    while at < graph.paths.len() {
        graph.expand(at)?;
        at += 1;
    }
    let order = graph.order()?;
    Ok(graph.work(&order, depth_max))
}

/// What applies a subschema to the same place.
#[derive(Clone, Copy, PartialEq)]
enum InPlace {
    /// Its errors are those of the whole.
    All,
    /// It may fail without that being an error; what is wrong is found out apart.
    Any,
}

#[derive(Default)]
struct Subschema {
    /// What it costs by itself.
    cost: f64,
    /// What it costs for each place below its own, however deep.
    cost_below: f64,
    in_place: Vec<(InPlace, usize)>,
    /// Of these one at most concerns a member of an object, ...
    one_of_members: Vec<usize>,
    /// ... and each of these every member.
    all_members: Vec<usize>,
    /// The same for the elements of an array.
    one_of_elements: Vec<usize>,
    all_elements: Vec<usize>,
    /// Whether it must know what the others on its level have evaluated.
    has_unevaluated: bool,
}

struct Graph<'a> {
    root: &'a Value,
    names: Names,
    paths: Vec<String>,
    indices: HashMap<String, usize>,
    subschemas: Vec<Subschema>,
    is_memoised: bool,
}

/// Where the `$id`s and anchors of a schema stand.
#[derive(Default)]
struct Names {
    /// Each `$id`, and the path of what it names.
    resources: Vec<(String, String)>,
    /// Each anchor, and the path of what it names.
    anchors: Vec<(String, String)>,
}

fn names(schema: &Value) -> Names {
    let mut names = Names::default();
    let mut pending = vec![(String::new(), schema)];
    while let Some((path, value)) = pending.pop() {
        if let Value::Object(members) = value {
            for key in ["$id", "id"] {
                match members.get(key).and_then(Value::as_str) {
                    Some(id) if id.starts_with('#') => {
                        names.anchors.push((id.trim_start_matches('#').to_owned(), path.clone()));
                    }
                    Some(id) => {
                        names.resources.push((id.trim_end_matches('#').to_owned(), path.clone()));
                    }
                    None => {}
                }
            }
            for key in ["$anchor", "$dynamicAnchor"] {
                if let Some(name) = members.get(key).and_then(Value::as_str) {
                    names.anchors.push((name.to_owned(), path.clone()));
                }
            }
            let children = members.iter();
            pending.extend(children.map(|(key, value)| (join(&path, key), value)));
        } else if let Value::Array(members) = value {
            let children = members.iter().enumerate();
            pending.extend(children.map(|(at, value)| (format!("{path}/{at}"), value)));
        }
    }
    names
}

/// A JSON pointer, one step further.
fn join(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

impl<'a> Graph<'a> {
    fn default_of(root: &'a Value) -> Self {
        Self {
            root,
            names: Names::default(),
            paths: vec![],
            indices: HashMap::new(),
            subschemas: vec![],
            is_memoised: true,
        }
    }

    fn add(&mut self, path: String) -> Result<usize, String> {
        if let Some(index) = self.indices.get(&path) {
            return Ok(*index);
        }
        let index = self.paths.len();
        if index == SUBSCHEMAS_MAX {
            return Err(format!("it has more than {SUBSCHEMAS_MAX} subschemas"));
        }
        self.indices.insert(path.clone(), index);
        self.paths.push(path);
        self.subschemas.push(Subschema::default());
        Ok(index)
    }

    fn expand(&mut self, index: usize) -> Result<(), String> {
        let path = self.paths.get(index).cloned().unwrap_or_default();
        let Some(Value::Object(keywords)) = self.root.pointer(&path) else {
            // `true` and `false`.
            return self.set(index, Subschema { cost: 1.0, ..Subschema::default() });
        };
        let mut found = Subschema { cost: 1.0, ..Subschema::default() };
        for (keyword, value) in keywords {
            let here = join(&path, keyword);
            let each = |value: &Value| match value {
                Value::Array(members) => {
                    (0..members.len()).map(|at| format!("{here}/{at}")).collect()
                }
                Value::Object(members) => members.keys().map(|key| join(&here, key)).collect(),
                _ => vec![],
            };
            let is_schema = value.is_object() || value.is_boolean();
            match keyword.as_str() {
                "$ref" | "$dynamicRef" | "$recursiveRef" => {
                    let reference = value.as_str().unwrap_or_default();
                    self.is_memoised &= keyword == "$ref";
                    for target in self.targets(&path, reference, keyword == "$dynamicRef")? {
                        found.in_place.push((InPlace::All, self.add(target)?));
                    }
                }
                "allOf" => {
                    for path in each(value) {
                        found.in_place.push((InPlace::All, self.add(path)?));
                    }
                }
                "anyOf" | "oneOf" => {
                    for path in each(value) {
                        found.in_place.push((InPlace::Any, self.add(path)?));
                    }
                }
                "not" | "if" => found.in_place.push((InPlace::Any, self.add(here)?)),
                "then" | "else" => found.in_place.push((InPlace::All, self.add(here)?)),
                "dependentSchemas" | "dependencies" => {
                    for path in each(value) {
                        if self.root.pointer(&path).is_some_and(|value| !value.is_array()) {
                            found.in_place.push((InPlace::All, self.add(path)?));
                        }
                    }
                }
                "properties" => {
                    for path in each(value) {
                        found.one_of_members.push(self.add(path)?);
                    }
                }
                "patternProperties" => {
                    for path in each(value) {
                        found.all_members.push(self.add(path)?);
                    }
                }
                "additionalProperties" if is_schema => {
                    found.one_of_members.push(self.add(here)?);
                }
                "propertyNames" if is_schema => found.all_members.push(self.add(here)?),
                "unevaluatedProperties" if is_schema => {
                    found.all_members.push(self.add(here)?);
                    found.has_unevaluated = true;
                }
                "unevaluatedItems" if is_schema => {
                    found.all_elements.push(self.add(here)?);
                    found.has_unevaluated = true;
                }
                "items" | "prefixItems" if value.is_array() => {
                    for path in each(value) {
                        found.one_of_elements.push(self.add(path)?);
                    }
                }
                "items" | "additionalItems" if is_schema => {
                    found.one_of_elements.push(self.add(here)?);
                }
                "contains" if is_schema => found.all_elements.push(self.add(here)?),
                "pattern" => found.cost += 1.0,
                // Fractions are divided by numbers of any length.
                "multipleOf" if !value.is_u64() => found.cost += FRACTION_CHECKS,
                "enum" => {
                    found.cost += value.as_array().map_or(0, Vec::len) as f64 / 8.0;
                }
                // A regex is compiled, and a text may be one that is laborious.
                "format" if value == "regex" => found.cost += REGEX_CHECKS,
                "format" => found.cost += 1.0,
                "uniqueItems" if value == &Value::Bool(true) => found.cost_below += UNIQUE_CHECKS,
                _ => found.cost += 0.1,
            }
        }
        self.set(index, found)
    }

    fn set(&mut self, index: usize, found: Subschema) -> Result<(), String> {
        if let Some(place) = self.subschemas.get_mut(index) {
            *place = found;
        }
        Ok(())
    }

    /// Where a reference may lead that stands in this subschema.
    fn targets(
        &self,
        path: &str,
        reference: &str,
        is_dynamic: bool,
    ) -> Result<Vec<String>, String> {
        let (resource, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let base = match resource {
            "" => self.base_of(path),
            _ => self
                .names
                .resources
                .iter()
                .find(|(id, _)| id == resource || id.ends_with(&format!("/{resource}")))
                .map(|(_, path)| path.clone())
                .ok_or_else(|| {
                    format!(
                        "{path}: the reference `{reference}` leads out of the schema; copy what \
                         it leads to into `$defs`"
                    )
                })?,
        };
        if fragment.is_empty() || fragment.starts_with('/') {
            let fragment = percent_decoded(fragment);
            let target = format!("{base}{fragment}");
            return match self.root.pointer(&target) {
                Some(_) => Ok(vec![target]),
                // By way of `$id`s it may be meant from the root.
                None if self.root.pointer(&fragment).is_some() => Ok(vec![fragment]),
                None => Err(format!("{path}: the reference `{reference}` leads nowhere")),
            };
        }
        let named = self.names.anchors.iter().filter(|(name, _)| name == fragment);
        let named: Vec<_> = named.map(|(_, path)| path.clone()).collect();
        let own: Vec<_> = named.iter().filter(|path| self.base_of(path) == base).cloned().collect();
        match (is_dynamic || own.is_empty(), named.is_empty()) {
            (_, true) => Err(format!("{path}: the reference `{reference}` leads nowhere")),
            (true, false) => Ok(named),
            (false, false) => Ok(own),
        }
    }

    /// The path of the resource that this subschema belongs to.
    fn base_of(&self, path: &str) -> String {
        let within = |base: &str| {
            path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let resources = self.names.resources.iter().map(|(_, base)| base);
        let bases = resources.filter(|base| within(base));
        bases.max_by_key(|base| base.len()).cloned().unwrap_or_default()
    }

    /// The subschemas in an order in which each comes behind all that it applies to
    /// the same place.
    fn order(&self) -> Result<Vec<usize>, String> {
        #[derive(Clone, Copy, PartialEq)]
        enum Visit {
            Not,
            Under,
            Done,
        }
        let mut visits = vec![Visit::Not; self.subschemas.len()];
        let mut order = Vec::with_capacity(self.subschemas.len());
        for start in 0..self.subschemas.len() {
            // Each with how many of those below it have been gone to.
            let mut stack = vec![(start, 0)];
            while let Some((index, below)) = stack.pop() {
                let (Some(visit), Some(subschema)) =
                    (visits.get_mut(index), self.subschemas.get(index))
                else {
                    continue;
                };
                if *visit == Visit::Done {
                    continue;
                }
                *visit = Visit::Under;
                let Some((_, next)) = subschema.in_place.get(below) else {
                    *visit = Visit::Done;
                    order.push(index);
                    continue;
                };
                stack.push((index, below + 1));
                match visits.get(*next) {
                    Some(Visit::Under) => {
                        let path = self.paths.get(index).map(String::as_str);
                        let back = self.paths.get(*next).map(String::as_str);
                        return Err(format!(
                            "{} leads back to {} on the same level of a payload, so it would take \
                             everything for valid; refer to it from `properties` or `items`",
                            named(path.unwrap_or_default()),
                            named(back.unwrap_or_default()),
                        ));
                    }
                    Some(Visit::Not) => stack.push((*next, 0)),
                    Some(Visit::Done) | None => {}
                }
            }
        }
        Ok(order)
    }

    fn work(&self, order: &[usize], depth_max: usize) -> Work {
        let count = self.subschemas.len();
        let at = |row: &[f64], index: usize| row.get(index).copied().unwrap_or_default();
        let most =
            |row: &[f64], of: &[usize]| of.iter().map(|index| at(row, *index)).fold(0.0, f64::max);
        let sum = |row: &[f64], of: &[usize]| of.iter().map(|index| at(row, *index)).sum::<f64>();
        // What each subschema costs at a place that is so many levels below its own.
        let mut valid = vec![0.0; count];
        let mut explained = vec![0.0; count];
        let mut work = Work { valid: vec![], explained: vec![] };
        let mut remembered = f64::INFINITY;
        let below: f64 = self.subschemas.iter().map(|subschema| subschema.cost_below).sum();
        for depth in 0..=depth_max {
            let (valid_above, explained_above) = (valid, explained);
            valid = vec![0.0; count];
            explained = vec![0.0; count];
            let mut marked = vec![0.0; count];
            for index in order {
                let Some(subschema) = self.subschemas.get(*index) else { continue };
                let below = |one_of: &[f64], all: &[f64]| {
                    let members =
                        most(one_of, &subschema.one_of_members) + sum(all, &subschema.all_members);
                    let elements = most(one_of, &subschema.one_of_elements)
                        + sum(all, &subschema.all_elements);
                    members.max(elements)
                };
                let (own_valid, own_explained) = match depth {
                    0 => (subschema.cost, subschema.cost),
                    _ => (
                        below(&valid_above, &valid_above) + subschema.cost_below,
                        below(&explained_above, &explained_above) + subschema.cost_below,
                    ),
                };
                let mut totals = (own_valid, own_explained, own_valid);
                for (how, other) in &subschema.in_place {
                    totals.0 += at(&valid, *other);
                    totals.1 += at(&explained, *other);
                    totals.2 += at(&valid, *other) + at(&marked, *other);
                    if *how == InPlace::Any {
                        totals.1 += at(&valid, *other);
                    }
                }
                if subschema.has_unevaluated {
                    totals.0 += totals.2;
                    totals.1 += totals.2;
                }
                for (row, total) in
                    [(&mut valid, totals.0), (&mut explained, totals.1), (&mut marked, totals.2)]
                {
                    if let Some(place) = row.get_mut(*index) {
                        *place = total;
                    }
                }
            }
            if depth == 0 && self.is_memoised {
                remembered = REPEATED * valid.iter().sum::<f64>();
            }
            // What is below a place is gone through for each place that it is below.
            let remembered = remembered + REPEATED * below * depth as f64;
            work.valid.push(at(&valid, 0).min(remembered));
            work.explained.push(at(&explained, 0));
        }
        work
    }
}

/// A path for people.
fn named(path: &str) -> &str {
    if path.is_empty() { "the schema" } else { path }
}

fn percent_decoded(fragment: &str) -> String {
    let mut bytes = vec![];
    let mut rest = fragment.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = match tail {
            [high, low, ..] if *first == b'%' => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What dividing by a fraction costs, in checks.
const FRACTION_CHECKS: f64 = 40.0;

/// What compiling a regex costs, in checks.
const REGEX_CHECKS: f64 = 40.0;

/// What writing a value costs, to compare it with others, in checks.
const UNIQUE_CHECKS: f64 = 2.0;
