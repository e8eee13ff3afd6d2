//! How much work a schema may be, found out before a payload is checked.
//!
//! A schema that refers to itself is applied again at each level of a payload. If
//! it does so in two ways at once, as `anyOf` of two references does, the work
//! doubles with each level. Such schemas are common and useful, for trees and
//! expressions, so they are accepted; but for each payload it is known beforehand how
//! often a subschema may be applied to each of its places, and a payload that would
//! be too much work is refused. It is an upper bound: no branch is assumed to be
//! left early.
//!
//! A schema that leads back to itself without going a level deeper says nothing:
//! validators stop there and take everything for valid. It is refused.

use std::collections::HashMap;

use serde_json::Value;

use crate::regexes::Regexes;

/// How many subschemas one schema may have.
const SUBSCHEMAS_MAX: usize = 20_000;

/// The crate remembers what a recursive reference came to for each array and object
/// once it was dear. What it does not remember is repeated so often at most.
const REPEATED: f64 = 8.0;

/// What there is at one level of a payload, or what each of it costs, in checks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Values of all kinds.
    pub values: f64,
    /// Arrays and objects.
    pub containers: f64,
    /// Members of objects.
    pub members: f64,
    /// Bytes of the names of these members.
    pub name_bytes: f64,
    /// Bytes of texts. The name of a member counts where its value stands, because
    /// `propertyNames` looks at it there.
    pub text_bytes: f64,
}

impl Tally {
    const NONE: Self =
        Self { values: 0.0, containers: 0.0, members: 0.0, name_bytes: 0.0, text_bytes: 0.0 };

    /// What looks at a value, at each member of it, and at each byte.
    const fn of_each(checks: f64) -> Self {
        let bytes = checks / BYTES_PER_CHECK;
        Self {
            values: checks,
            containers: 0.0,
            members: checks,
            name_bytes: bytes,
            text_bytes: bytes,
        }
    }

    fn of_containers(containers: f64) -> Self {
        Self { containers, ..Self::NONE }
    }

    fn zip(self, other: Self, with: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            values: with(self.values, other.values),
            containers: with(self.containers, other.containers),
            members: with(self.members, other.members),
            name_bytes: with(self.name_bytes, other.name_bytes),
            text_bytes: with(self.text_bytes, other.text_bytes),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, |one, other| one + other)
    }

    fn max(self, other: Self) -> Self {
        self.zip(other, f64::max)
    }

    fn min(self, other: Self) -> Self {
        self.zip(other, f64::min)
    }

    fn times(self, factor: f64) -> Self {
        self.zip(Self::NONE, |one, _| one * factor)
    }

    fn sum(self) -> f64 {
        self.values + self.containers + self.members + self.name_bytes + self.text_bytes
    }
}

/// What a payload costs, for each level of it.
#[derive(Clone, Debug)]
pub struct Work {
    /// To find out whether it fits.
    pub valid: Vec<Tally>,
    /// To find out, for one that does not, where and why.
    pub explained: Vec<Tally>,
}

impl Work {
    /// What an empty object costs.
    pub fn least(&self) -> f64 {
        self.valid.first().map_or(0.0, |each| each.values + each.containers)
    }
}

/// What there is in a payload at each level.
pub fn places(document: &Value) -> Vec<Tally> {
    let mut places = vec![];
    let mut level = vec![document];
    let mut names_above = 0.0;
    while !level.is_empty() {
        let mut found =
            Tally { values: level.len() as f64, text_bytes: names_above, ..Tally::NONE };
        let mut next = vec![];
        for value in level {
            match value {
                Value::String(text) => found.text_bytes += text.len() as f64,
                Value::Array(elements) => {
                    found.containers += 1.0;
                    next.extend(elements);
                }
                Value::Object(members) => {
                    found.containers += 1.0;
                    found.members += members.len() as f64;
                    found.name_bytes += members.keys().map(String::len).sum::<usize>() as f64;
                    next.extend(members.values());
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        names_above = found.name_bytes;
        places.push(found);
        level = next;
    }
    places
}

/// How many checks these places may need.
pub fn checks(places: &[Tally], each: &[Tally]) -> f64 {
    // Deeper than the schema was looked at no payload goes.
    let last = each.last().copied().unwrap_or_default();
    let each = each.iter().copied().chain(std::iter::repeat(last));
    // No place of a kind costs nothing, however dear one would be.
    let cost = |count: f64, checks: f64| if count == 0.0 { 0.0 } else { count * checks };
    places.iter().zip(each).map(|(places, each)| places.zip(each, cost).sum()).sum()
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
    cost: Tally,
    /// What it costs for each place below its own, however deep.
    cost_below: Tally,
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
    regexes: Regexes,
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
            regexes: Regexes::default(),
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
            return self
                .set(index, Subschema { cost: Tally::of_each(1.0), ..Subschema::default() });
        };
        let mut found = Subschema { cost: Tally::of_each(1.0), ..Subschema::default() };
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
            found.cost = found.cost.plus(self.cost_of(keyword, value));
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
                "uniqueItems" if value == &Value::Bool(true) => {
                    found.cost_below = Tally::of_each(UNIQUE_CHECKS);
                }
                _ => {}
            }
        }
        self.set(index, found)
    }

    /// What a keyword costs where its subschema is applied, without the subschemas in it.
    fn cost_of(&mut self, keyword: &str, value: &Value) -> Tally {
        let count = value.as_array().map(Vec::len).or(value.as_object().map(serde_json::Map::len));
        let keys = count.unwrap_or_default() as f64 * KEY_CHECKS;
        match keyword {
            "pattern" => {
                let pattern = value.as_str().unwrap_or_default();
                let text_bytes = self.regexes.checks_per_byte(pattern);
                Tally { values: 1.0, text_bytes, ..Tally::NONE }
            }
            "patternProperties" => {
                let patterns = value.as_object().into_iter().flat_map(serde_json::Map::keys);
                let name_bytes = patterns.map(|one| self.regexes.checks_per_byte(one)).sum();
                let members = count.unwrap_or_default() as f64;
                // `additionalProperties` matches them once more.
                Tally { members, name_bytes, ..Tally::NONE }.times(2.0)
            }
            "properties" | "required" | "dependentSchemas" => Tally::of_containers(keys),
            "dependentRequired" | "dependencies" => {
                let lists = value.as_object().into_iter().flat_map(serde_json::Map::values);
                let names: usize = lists.filter_map(Value::as_array).map(Vec::len).sum();
                Tally::of_containers(keys + names as f64 * KEY_CHECKS)
            }
            "enum" => match value.as_array() {
                // The crate looks them up.
                Some(all) if all.len() >= 10 && all.iter().all(Value::is_string) => {
                    Tally { values: 1.0, ..Tally::NONE }
                }
                all => all.into_iter().flatten().map(compared).fold(Tally::NONE, Tally::plus),
            },
            "const" => compared(value),
            // Fractions are divided by numbers of any length.
            "multipleOf" if !value.is_u64() => Tally::of_each(FRACTION_CHECKS),
            // A regex is compiled, and a text may be one that is laborious.
            "format" if value == "regex" => Tally::of_each(REGEX_CHECKS),
            "format" => Tally::of_each(1.0),
            _ => Tally { values: 0.1, ..Tally::NONE },
        }
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
        let at = |row: &[Tally], index: usize| row.get(index).copied().unwrap_or_default();
        let most = |row: &[Tally], of: &[usize]| {
            of.iter().map(|index| at(row, *index)).fold(Tally::NONE, Tally::max)
        };
        let sum = |row: &[Tally], of: &[usize]| {
            of.iter().map(|index| at(row, *index)).fold(Tally::NONE, Tally::plus)
        };
        // What each subschema costs at a place that is so many levels below its own.
        let mut valid = vec![Tally::NONE; count];
        let mut explained = vec![Tally::NONE; count];
        let mut work = Work { valid: vec![], explained: vec![] };
        let mut remembered = None;
        let below = self.subschemas.iter().map(|subschema| subschema.cost_below);
        let below = below.fold(Tally::NONE, Tally::plus);
        for depth in 0..=depth_max {
            let (valid_above, explained_above) = (valid, explained);
            valid = vec![Tally::NONE; count];
            explained = vec![Tally::NONE; count];
            let mut marked = vec![Tally::NONE; count];
            for index in order {
                let Some(subschema) = self.subschemas.get(*index) else { continue };
                let below = |one_of: &[Tally], all: &[Tally]| {
                    let members = most(one_of, &subschema.one_of_members)
                        .plus(sum(all, &subschema.all_members));
                    let elements = most(one_of, &subschema.one_of_elements)
                        .plus(sum(all, &subschema.all_elements));
                    members.max(elements)
                };
                let (own_valid, own_explained) = match depth {
                    0 => (subschema.cost, subschema.cost),
                    _ => (
                        below(&valid_above, &valid_above).plus(subschema.cost_below),
                        below(&explained_above, &explained_above).plus(subschema.cost_below),
                    ),
                };
                let mut totals = (own_valid, own_explained, own_valid);
                for (how, other) in &subschema.in_place {
                    let other_valid = at(&valid, *other);
                    totals.0 = totals.0.plus(other_valid);
                    totals.1 = totals.1.plus(at(&explained, *other));
                    totals.2 = totals.2.plus(other_valid).plus(at(&marked, *other));
                    if *how == InPlace::Any {
                        totals.1 = totals.1.plus(other_valid);
                    }
                }
                if subschema.has_unevaluated {
                    totals.0 = totals.0.plus(totals.2);
                    totals.1 = totals.1.plus(totals.2);
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
                let all = valid.iter().copied().fold(Tally::NONE, Tally::plus);
                remembered = Some(all.times(REPEATED));
            }
            // What is below a place is gone through for each place that it is below.
            let most = remembered.map(|all| all.plus(below.times(REPEATED * depth as f64)));
            let counted = at(&valid, 0);
            work.valid.push(most.map_or(counted, |most| counted.min(most)));
            work.explained.push(at(&explained, 0));
        }
        work
    }
}

/// What it costs to compare a value with this one.
fn compared(value: &Value) -> Tally {
    let mut cost = Tally { values: 1.0 / 8.0, ..Tally::NONE };
    if let Value::String(text) = value {
        cost.values += text.len() as f64 * EQUAL_BYTE_CHECKS;
    }
    // What is in it is compared with an array or an object only.
    let mut pending = vec![];
    let mut next = Some(value);
    while let Some(value) = next {
        match value {
            Value::Array(elements) => pending.extend(elements),
            Value::Object(members) => {
                let names: usize = members.keys().map(String::len).sum();
                cost.containers += members.len() as f64 * KEY_CHECKS;
                cost.containers += names as f64 * EQUAL_BYTE_CHECKS;
                pending.extend(members.values());
            }
            Value::String(text) => cost.containers += text.len() as f64 * EQUAL_BYTE_CHECKS,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        cost.containers += EQUAL_CHECKS;
        next = pending.pop();
    }
    cost
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

/// A byte of text costs about so much less than a subschema.
const BYTES_PER_CHECK: f64 = 16.0;

/// What looking for a name in an object costs, in checks.
const KEY_CHECKS: f64 = 0.1;

/// What comparing two values costs, in checks, ...
const EQUAL_CHECKS: f64 = 0.25;

/// ... and more for each byte of texts in them.
const EQUAL_BYTE_CHECKS: f64 = 1.0 / 128.0;
