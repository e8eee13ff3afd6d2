//! Which users may subscribe and publish, and to which channels.
//!
//! Rules are tried in order, and the first that matches the user, its roles, the action and
//! the channel decides. If none matches, the action is refused. A PSUBSCRIBE requests every
//! channel that its pattern matches, including channels that have never been used: it is
//! permitted only if one rule permits the user to subscribe to all of them and no earlier rule
//! denies any of them.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;

use plugin_kit::budget::{Budget, TooCostly};
use plugin_kit::cover::Cover;
use plugin_kit::glob::Glob;
use plugin_kit::user_selector::UserSelector;

use crate::pattern::RulePattern;
use crate::subject::Subject;

/// What a rule says to what it speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Yes.
    #[default]
    Allow,
    /// No, whatever later rules say.
    Deny,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of which users it speaks.
    pub users: Vec<UserSelector>,
    /// Only users that have one of these roles. Empty: all users.
    pub roles: Vec<String>,
    /// What it says.
    pub effect: Effect,
    /// To which channels it lets them listen, or forbids it.
    pub subscribe: Vec<RulePattern>,
    /// On which channels it lets them publish, or forbids it.
    pub publish: Vec<RulePattern>,
}

/// An operation that a connection requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Subscribe to a channel.
    Subscribe(&'a str),
    /// Subscribe to all channels that match.
    Psubscribe(&'a str),
    /// Publish on a channel.
    Publish(&'a str),
    /// Look at what does not belong to a channel, such as the server's state. No rule allows it.
    Inspect,
}

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No rule allows it.
    NoRule,
    /// This rule, counted from 1, forbids it.
    Rule(usize),
    /// The decision would take too long.
    TooCostly,
}

impl From<TooCostly> for Denial {
    fn from(TooCostly: TooCostly) -> Self {
        Self::TooCostly
    }
}

impl Rule {
    fn speaks_of(&self, subject: &Subject) -> bool {
        self.users.iter().any(|selector| selector.matches(subject.user.as_deref()))
            && (self.roles.is_empty() || self.roles.iter().any(|role| subject.roles.contains(role)))
    }

    /// Whether it applies to an origin that is no connection. Such an origin has neither a user nor
    /// roles, and is not an anonymous client: only a rule for everyone allows it something. What a
    /// rule denies to connections without a user, it denies to the origin too.
    fn applies_to_other(&self) -> bool {
        let applies = |selector: &UserSelector| match self.effect {
            Effect::Allow => *selector == UserSelector::Any,
            Effect::Deny => selector.matches(None),
        };
        self.roles.is_empty() && self.users.iter().any(applies)
    }
}

/// The rules as they stand for one subject, for as long as one call takes.
///
/// What only patterns need is made when the first one is checked, and serves
/// all others of the call.
#[derive(Debug)]
pub struct SubjectRules<'a> {
    rules: &'a [Rule],
    /// None: an origin that is no connection.
    subject: Option<&'a Subject>,
    for_patterns: OnceCell<Result<Vec<PatternRule<'a>>, TooCostly>>,
}

/// Has nothing that a placeholder could stand for.
static WITHOUT_USER: Subject =
    Subject { user: None, roles: Vec::new(), attributes: BTreeMap::new() };

/// What a rule says to patterns.
#[derive(Debug)]
struct PatternRule<'a> {
    number: usize,
    effect: Effect,
    subscribe: Vec<Cow<'a, Cover>>,
}

impl<'a> SubjectRules<'a> {
    /// The rules for this subject.
    pub fn new(rules: &'a [Rule], subject: &'a Subject) -> Self {
        Self { rules, subject: Some(subject), for_patterns: OnceCell::new() }
    }

    /// The rules for an origin that is no connection.
    pub fn of_other(rules: &'a [Rule]) -> Self {
        Self { rules, subject: None, for_patterns: OnceCell::new() }
    }

    /// Decides by the first rule that applies. Only `Operation::Psubscribe` takes
    /// from the budget.
    pub fn decide(&self, operation: Operation<'_>, budget: &mut Budget) -> Result<(), Denial> {
        match operation {
            Operation::Publish(channel) => self.decide_on_channel(channel, |rule| &rule.publish),
            Operation::Subscribe(channel) => {
                self.decide_on_channel(channel, |rule| &rule.subscribe)
            }
            Operation::Psubscribe(pattern) => self.decide_on_pattern(pattern, budget),
            Operation::Inspect => Err(Denial::NoRule),
        }
    }

    fn decide_on_channel(
        &self,
        channel: &str,
        patterns_of: impl Fn(&Rule) -> &[RulePattern],
    ) -> Result<(), Denial> {
        for (number, rule) in self.numbered() {
            let mut patterns = patterns_of(rule).iter();
            if patterns.any(|pattern| pattern.matches(self.subject(), channel)) {
                return rule.effect.of_rule(number);
            }
        }
        Err(Denial::NoRule)
    }

    /// To allow a pattern, a rule must speak of all that it matches; to forbid
    /// it, of anything.
    fn decide_on_pattern(&self, pattern: &str, budget: &mut Budget) -> Result<(), Denial> {
        budget.spend(pattern.len())?;
        let requested = Glob::parse(pattern.as_bytes());
        let rules = self.for_patterns.get_or_init(|| self.read_for_patterns(budget));
        for rule in rules.as_ref().map_err(|too_costly| *too_costly)? {
            for cover in &rule.subscribe {
                let applies = match rule.effect {
                    Effect::Allow => cover.covers(&requested, budget)?,
                    Effect::Deny => cover.glob().overlaps(&requested, budget)?,
                };
                if applies {
                    return rule.effect.of_rule(rule.number);
                }
            }
        }
        Err(Denial::NoRule)
    }

    fn read_for_patterns(&self, budget: &mut Budget) -> Result<Vec<PatternRule<'a>>, TooCostly> {
        let rules = self.numbered().map(|(number, rule)| {
            let covers = rule.subscribe.iter();
            let covers =
                covers.filter_map(|pattern| pattern.cover_for(self.subject(), budget).transpose());
            Ok(PatternRule {
                number,
                effect: rule.effect,
                subscribe: covers.collect::<Result<_, _>>()?,
            })
        });
        rules.collect()
    }

    /// The rules that speak of the subject, counted from 1.
    fn numbered(&self) -> impl Iterator<Item = (usize, &'a Rule)> {
        let rules = (1..).zip(self.rules);
        rules.filter(|(_, rule)| match self.subject {
            Some(subject) => rule.speaks_of(subject),
            None => rule.applies_to_other(),
        })
    }

    /// What placeholders in patterns stand for.
    fn subject(&self) -> &'a Subject {
        self.subject.unwrap_or(&WITHOUT_USER)
    }
}

impl Effect {
    fn of_rule(self, number: usize) -> Result<(), Denial> {
        match self {
            Self::Allow => Ok(()),
            Self::Deny => Err(Denial::Rule(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(effect: Effect, users: &[&str], subscribe: &[&str], publish: &[&str]) -> Rule {
        let selector = |text: &&str| match *text {
            "*" => UserSelector::Any,
            "@authenticated" => UserSelector::Authenticated,
            "@anonymous" => UserSelector::Anonymous,
            name => UserSelector::User(name.to_owned()),
        };
        let patterns =
            |texts: &[&str]| texts.iter().map(|text| RulePattern::parse(text, &[])).collect();
        Rule {
            users: users.iter().map(selector).collect(),
            roles: vec![],
            effect,
            subscribe: patterns(subscribe),
            publish: patterns(publish),
        }
    }

    fn check(rules: &[Rule], user: &str, operation: Operation<'_>, expected: Result<(), Denial>) {
        let user = Some(user).filter(|user| !user.is_empty());
        let subject = Subject::user(user);
        let found = SubjectRules::new(rules, &subject).decide(operation, &mut Budget::of(100_000));
        assert_eq!(found, expected, "{user:?} {operation:?}");
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        use Operation::{Publish, Subscribe};
        let rules = [
            rule(Effect::Deny, &["mallory"], &["*"], &["*"]),
            rule(Effect::Allow, &["alice", "bob"], &["news.*"], &["news.*"]),
            rule(Effect::Deny, &["*"], &["*.internal"], &[]),
            rule(Effect::Allow, &["@authenticated"], &["user.{user}", "all.*"], &[]),
            rule(Effect::Allow, &["@anonymous"], &["lobby"], &["lobby"]),
            rule(Effect::Allow, &["*"], &["public.*"], &[]),
        ];
        let check = |user, operation, expected| check(&rules, user, operation, expected);
        check("alice", Publish("news.sport"), Ok(()));
        check("alice", Publish("sport"), Err(Denial::NoRule));
        check("carol", Publish("news.sport"), Err(Denial::NoRule));
        check("mallory", Subscribe("public.a"), Err(Denial::Rule(1)));
        check("alice", Subscribe("news.internal"), Ok(()));
        check("carol", Subscribe("all.internal"), Err(Denial::Rule(3)));
        check("carol", Subscribe("all.hands"), Ok(()));
        check("carol", Subscribe("user.carol"), Ok(()));
        check("carol", Subscribe("user.alice"), Err(Denial::NoRule));
        check("carol", Publish("user.carol"), Err(Denial::NoRule));
        check("", Subscribe("user."), Err(Denial::NoRule));
        check("", Subscribe("lobby"), Ok(()));
        check("", Publish("lobby"), Ok(()));
        check("alice", Subscribe("lobby"), Err(Denial::NoRule));
        check("", Subscribe("public.a"), Ok(()));
        check("", Subscribe("all.hands"), Err(Denial::NoRule));
        check("", Subscribe(""), Err(Denial::NoRule));
        // The name of a user is never read as a word.
        check("*", Subscribe("lobby"), Err(Denial::NoRule));
        check("@anonymous", Subscribe("lobby"), Err(Denial::NoRule));
    }

    #[test]
    fn a_rule_may_speak_of_roles() {
        let with_roles = |roles: &[&str], rule: Rule| Rule {
            roles: roles.iter().map(|role| role.to_string()).collect(),
            ..rule
        };
        let rules = [
            with_roles(&["banned"], rule(Effect::Deny, &["*"], &["*"], &["*"])),
            with_roles(&["admin", "editor"], rule(Effect::Allow, &["*"], &["n.*"], &["n.*"])),
            with_roles(&["admin"], rule(Effect::Allow, &["alice"], &["audit.{sub}"], &[])),
        ];
        let check = |user, roles: &[&str], operation, expected| {
            let subject = Subject {
                roles: roles.iter().map(|role| role.to_string()).collect(),
                ..Subject::user(user)
            };
            let found =
                SubjectRules::new(&rules, &subject).decide(operation, &mut Budget::of(100_000));
            assert_eq!(found, expected, "{subject:?} {operation:?}");
        };
        let (alice, bob) = (Some("alice"), Some("bob"));
        check(alice, &["editor"], Operation::Publish("n.a"), Ok(()));
        check(alice, &["editor"], Operation::Psubscribe("n.a*"), Ok(()));
        check(None, &["admin"], Operation::Publish("n.a"), Ok(()));
        check(alice, &["Editor"], Operation::Publish("n.a"), Err(Denial::NoRule));
        check(alice, &[], Operation::Publish("n.a"), Err(Denial::NoRule));
        check(alice, &["admin", "banned"], Operation::Publish("n.a"), Err(Denial::Rule(1)));
        // Both must fit: the user and one of the roles.
        check(alice, &["admin"], Operation::Subscribe("audit.alice"), Ok(()));
        check(bob, &["admin"], Operation::Subscribe("audit.bob"), Err(Denial::NoRule));
        check(alice, &["editor"], Operation::Subscribe("audit.alice"), Err(Denial::NoRule));
    }

    #[test]
    fn an_origin_that_is_no_connection_needs_a_rule_for_everyone() {
        let only_admins =
            Rule { roles: vec!["admin".to_owned()], ..rule(Effect::Allow, &["*"], &["*"], &["*"]) };
        let rules = [
            only_admins,
            rule(Effect::Deny, &["@anonymous"], &[], &["open.shut"]),
            rule(Effect::Deny, &["alice", "@authenticated"], &[], &["*"]),
            rule(Effect::Allow, &["@anonymous"], &["lobby"], &["lobby"]),
            rule(Effect::Allow, &["*"], &["open.*", "user.{user}"], &["open.*"]),
        ];
        let check = |operation, expected| {
            let found = SubjectRules::of_other(&rules).decide(operation, &mut Budget::of(100_000));
            assert_eq!(found, expected, "{operation:?}");
        };
        check(Operation::Publish("open.a"), Ok(()));
        check(Operation::Subscribe("open.a"), Ok(()));
        check(Operation::Psubscribe("open.a*"), Ok(()));
        check(Operation::Publish("open.shut"), Err(Denial::Rule(2)));
        check(Operation::Publish("lobby"), Err(Denial::NoRule));
        check(Operation::Psubscribe("lobby"), Err(Denial::NoRule));
        check(Operation::Subscribe("user."), Err(Denial::NoRule));
    }

    #[test]
    fn a_pattern_needs_one_rule_for_all_that_it_matches() {
        use Operation::Psubscribe;
        let rules = [
            rule(Effect::Allow, &["root"], &["*"], &[]),
            rule(Effect::Deny, &["*"], &["news.secret*"], &[]),
            rule(Effect::Allow, &["*"], &["news.*", "user.{user}.*", "a", "b"], &["c*"]),
        ];
        let check = |user, pattern, expected| check(&rules, user, Psubscribe(pattern), expected);
        check("alice", "news.sport.*", Ok(()));
        check("alice", "news.[a-r]*", Ok(()));
        check("alice", "news.*", Err(Denial::Rule(2)));
        check("alice", "news.[a-s]*", Err(Denial::Rule(2)));
        check("alice", "n*", Err(Denial::Rule(2)));
        check("alice", "news.sport", Ok(()));
        check("alice", r"news.\sport", Ok(()));
        check("alice", "news?sport", Err(Denial::NoRule));
        check("alice", "news", Err(Denial::NoRule));
        check("alice", "*", Err(Denial::Rule(2)));
        check("alice", "c*", Err(Denial::NoRule));
        check("alice", "user.alice.*", Ok(()));
        check("alice", "user.alice.*.x", Ok(()));
        check("alice", "user.alice*", Err(Denial::NoRule));
        check("alice", "user.*", Err(Denial::NoRule));
        check("*", "user.*.a", Err(Denial::NoRule));
        check("*", r"user.\*.a", Ok(()));
        check("", "user.*", Err(Denial::NoRule));
        // Two patterns of a rule together are not tried; that is said in README.
        check("alice", "[ab]", Err(Denial::NoRule));
        check("root", "*", Ok(()));
        check("root", "", Err(Denial::NoRule));
        // Matches nothing, so there is nothing to be refused.
        check("alice", "x[]", Ok(()));
    }

    #[test]
    fn what_cannot_be_decided_cheaply_is_refused() {
        let rules = [rule(Effect::Allow, &["*"], &["*a??????????????*z"], &[])];
        let check = |operation, expected| check(&rules, "alice", operation, expected);
        let costly = Operation::Psubscribe("[ab]*a??????????????*z");
        check(costly, Err(Denial::TooCostly));
        // What was spent is missed by patterns only.
        let anonymous = Subject::default();
        let rules = SubjectRules::new(&rules, &anonymous);
        let mut empty = Budget::of(0);
        let operation = Operation::Subscribe("xa--------------z");
        assert_eq!(rules.decide(operation, &mut empty), Ok(()));
        let operation = Operation::Psubscribe("a");
        assert_eq!(rules.decide(operation, &mut empty), Err(Denial::TooCostly));
    }
}
