//! Makes one page of the contract's doc comments: interfaces in the order in which a
//! plugin's author needs them, each with its functions and types; then the engine's contract, which
//! has a version of its own; then what calls cost, as measured.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use wit_parser::{
    Docs, Function, Handle, Interface, Package, Resolve, Type, TypeDef, TypeDefKind, TypeId, World,
    WorldItem,
};

/// What a plugin exports, what it may import, and the types of both. The build fails when an
/// interface is missing.
const CHAPTERS: &[(&str, &[&str])] = &[
    (
        "What a plugin exports",
        &["lifecycle", "admission", "access", "messages", "deliveries", "snapshot"],
    ),
    ("What a plugin may import", &["attributes", "counters", "log"]),
    ("Types of both", &["types"]),
    (
        "What this version of the server does not call or offer yet",
        &["calls", "entries", "timer", "publisher", "subscriptions"],
    ),
];

/// What only the engine exports, besides `snapshot`.
const ENGINE: &[&str] = &["engine", "listing"];

const ENGINE_HEAD: &str = "
# The engine

The engine has a contract of its own, `switchyard:pubsub@0.1.0` in [wit/0.1.0](../../wit/0.1.0): these two interfaces,
and `snapshot` with the functions described above.
";

const HEAD: &str = "# The contract

The interfaces between a plugin and the server. This page is generated from the comments in [wit/](../../wit): change
them there, and run `make wit-reference`. [guide.md](guide.md) is the introduction, [compatibility.md](compatibility.md)
says which versions of the contract a server accepts. Names are written as in WIT; Rust and Python write `on_publish`
and `Submission`, JavaScript `onPublish`.
";

fn main() -> Result<()> {
    let wit = Path::new("../../wit");
    let costs = Path::new("../../docs/plugins/call-costs.md");
    for source in [wit, costs] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").context("cargo says where")?);
    let costs = std::fs::read_to_string(costs).unwrap_or_default();
    std::fs::write(out.join("reference.md"), page(wit, &costs)?)?;
    Ok(())
}

fn page(wit: &Path, costs: &str) -> Result<String> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let package = resolve.packages.get(package).context("it was put there")?;
    let mut page = HEAD.to_owned();
    write!(page, "\nThe package is `{}`.\n", package.name)?;
    let mut left: Vec<&str> = package.interfaces.keys().map(String::as_str).collect();
    for (title, names) in CHAPTERS {
        write!(page, "\n# {title}\n")?;
        left.retain(|name| !names.contains(name));
        interfaces(&mut page, &resolve, package, names)?;
    }
    ensure!(left.is_empty(), "no chapter has the interfaces {left:?}");
    page.push_str("\n# Worlds\n");
    for (name, id) in &package.worlds {
        world(&mut page, &resolve, name, resolve.worlds.get(*id).context("it is")?)?;
    }
    engine(&mut page, &wit.join("0.1.0"))?;
    if !costs.is_empty() {
        write!(page, "\n{}\n", costs.trim())?;
    }
    Ok(page)
}

fn engine(page: &mut String, wit: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let package = resolve.packages.get(package).context("it was put there")?;
    page.push_str(ENGINE_HEAD);
    interfaces(page, &resolve, package, ENGINE)
}

fn interfaces(
    page: &mut String,
    resolve: &Resolve,
    package: &Package,
    names: &[&str],
) -> Result<()> {
    for name in names {
        let id = package.interfaces.get(*name);
        let id = id.with_context(|| format!("there is no interface {name}"))?;
        interface(page, resolve, name, resolve.interfaces.get(*id).context("it is")?)?;
    }
    Ok(())
}

fn interface(
    page: &mut String,
    resolve: &Resolve,
    name: &str,
    interface: &Interface,
) -> Result<()> {
    write!(page, "\n## {name}\n")?;
    docs(page, &interface.docs)?;
    for function in interface.functions.values() {
        write!(page, "\n### {name}: {}\n\n```wit\n", function.name)?;
        signature(page, resolve, function)?;
        page.push_str("```\n");
        docs(page, &function.docs)?;
    }
    for (type_name, id) in &interface.types {
        let of = resolve.types.get(*id).context("it is")?;
        // A type of another interface is documented there.
        if !is_alias(resolve, of) {
            write!(page, "\n### {name}: {type_name}\n\n```wit\n")?;
            definition(page, resolve, type_name, of)?;
            page.push_str("```\n");
            docs(page, &of.docs)?;
            members(page, &of.kind)?;
        }
    }
    Ok(())
}

/// Whether it is another interface's type under a name of its own.
fn is_alias(resolve: &Resolve, of: &TypeDef) -> bool {
    match of.kind {
        TypeDefKind::Type(Type::Id(id)) => {
            resolve.types.get(id).is_some_and(|target| target.owner != of.owner)
        }
        _ => false,
    }
}

fn signature(page: &mut String, resolve: &Resolve, function: &Function) -> Result<()> {
    let mut parameters = Vec::new();
    for parameter in &function.params {
        parameters.push(format!("{}: {}", parameter.name, spelled(resolve, parameter.ty)?));
    }
    write!(page, "{}: func({})", function.name, parameters.join(", "))?;
    if let Some(result) = function.result {
        write!(page, " -> {}", spelled(resolve, result)?)?;
    }
    page.push_str(";\n");
    Ok(())
}

fn definition(page: &mut String, resolve: &Resolve, name: &str, of: &TypeDef) -> Result<()> {
    match &of.kind {
        TypeDefKind::Record(record) => {
            writeln!(page, "record {name} {{")?;
            for field in &record.fields {
                writeln!(page, "    {}: {},", field.name, spelled(resolve, field.ty)?)?;
            }
            page.push_str("}\n");
        }
        TypeDefKind::Variant(variant) => {
            writeln!(page, "variant {name} {{")?;
            for case in &variant.cases {
                match case.ty {
                    Some(ty) => writeln!(page, "    {}({}),", case.name, spelled(resolve, ty)?)?,
                    None => writeln!(page, "    {},", case.name)?,
                }
            }
            page.push_str("}\n");
        }
        TypeDefKind::Enum(cases) => {
            writeln!(page, "enum {name} {{")?;
            for case in &cases.cases {
                writeln!(page, "    {},", case.name)?;
            }
            page.push_str("}\n");
        }
        TypeDefKind::Type(ty) => writeln!(page, "type {name} = {};", spelled(resolve, *ty)?)?,
        TypeDefKind::List(_) | TypeDefKind::Tuple(_) => {
            writeln!(page, "type {name} = {};", spelled_kind(resolve, &of.kind)?)?;
        }
        other => bail!("{name} is a {}, which this does not render yet", other.as_str()),
    }
    Ok(())
}

/// The comments of fields and cases.
fn members(page: &mut String, kind: &TypeDefKind) -> Result<()> {
    let members: Vec<(&str, &Docs)> = match kind {
        TypeDefKind::Record(record) => {
            record.fields.iter().map(|field| (field.name.as_str(), &field.docs)).collect()
        }
        TypeDefKind::Variant(variant) => {
            variant.cases.iter().map(|case| (case.name.as_str(), &case.docs)).collect()
        }
        TypeDefKind::Enum(cases) => {
            cases.cases.iter().map(|case| (case.name.as_str(), &case.docs)).collect()
        }
        _ => Vec::new(),
    };
    if !members.is_empty() {
        page.push('\n');
    }
    for (name, docs) in members {
        let words = docs.contents.as_deref().with_context(|| format!("{name} has no comment"))?;
        let words: Vec<&str> = words.lines().map(str::trim).collect();
        writeln!(page, "- `{name}`: {}", words.join(" ").trim())?;
    }
    Ok(())
}

fn world(page: &mut String, resolve: &Resolve, name: &str, world: &World) -> Result<()> {
    write!(page, "\n## world {name}\n")?;
    docs(page, &world.docs)?;
    for (what, items) in [("imports", &world.imports), ("exports", &world.exports)] {
        let mut names = Vec::new();
        for item in items.values() {
            let WorldItem::Interface { id, .. } = item else {
                bail!("the world {name} has more than interfaces")
            };
            let interface = resolve.interfaces.get(*id).context("it is")?;
            let interface = interface.name.as_deref().context("it has a name")?;
            names.push(format!("[{interface}](#{interface})"));
        }
        if !names.is_empty() {
            write!(page, "\nIt {what} {}.\n", names.join(", "))?;
        }
    }
    Ok(())
}

fn docs(page: &mut String, docs: &Docs) -> Result<()> {
    if let Some(words) = &docs.contents {
        write!(page, "\n{}\n", words.trim_end())?;
    }
    Ok(())
}

/// A type as it is written in WIT.
fn spelled(resolve: &Resolve, ty: Type) -> Result<String> {
    Ok(match ty {
        Type::Bool => "bool".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::F32 => "f32".to_owned(),
        Type::F64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::ErrorContext => "error-context".to_owned(),
        Type::Id(id) => spelled_by_id(resolve, id)?,
    })
}

fn spelled_by_id(resolve: &Resolve, id: TypeId) -> Result<String> {
    let of = resolve.types.get(id).context("it is")?;
    if let Some(name) = &of.name {
        return Ok(name.clone());
    }
    spelled_kind(resolve, &of.kind)
}

/// A type without its name.
fn spelled_kind(resolve: &Resolve, kind: &TypeDefKind) -> Result<String> {
    let spell = |ty: &Type| spelled(resolve, *ty);
    Ok(match kind {
        TypeDefKind::List(ty) => format!("list<{}>", spell(ty)?),
        TypeDefKind::Option(ty) => format!("option<{}>", spell(ty)?),
        TypeDefKind::Tuple(tuple) => {
            let types: Vec<String> = tuple.types.iter().map(spell).collect::<Result<_>>()?;
            format!("tuple<{}>", types.join(", "))
        }
        TypeDefKind::Result(result) => match (&result.ok, &result.err) {
            (None, None) => "result".to_owned(),
            (Some(ok), None) => format!("result<{}>", spell(ok)?),
            (None, Some(err)) => format!("result<_, {}>", spell(err)?),
            (Some(ok), Some(err)) => format!("result<{}, {}>", spell(ok)?, spell(err)?),
        },
        TypeDefKind::Handle(Handle::Own(id)) => spelled_by_id(resolve, *id)?,
        TypeDefKind::Handle(Handle::Borrow(id)) => {
            format!("borrow<{}>", spelled_by_id(resolve, *id)?)
        }
        other => bail!("this does not spell a {} yet", other.as_str()),
    })
}
