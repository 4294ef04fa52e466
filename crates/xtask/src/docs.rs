//! `cargo xtask docs`: the documentation site, and the links of all Markdown files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};
use ruminate_libtorch::Problem;
use ruminate_libtorch::machine::first_line;
use serde_json::Value;

use crate::cargo::run;

/// Folders with Markdown files, besides the root itself.
const FOLDERS: [&str; 6] = [".github", "benches", "crates", "docs", "examples", "fixtures"];

/// The folder of the site's pages, and the page that puts them in order.
const BOOK: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";

/// Where `cargo install --root target/tools` puts the program that makes the site.
const MDBOOK: &str = "target/tools/bin/mdbook";

/// Options of `cargo xtask docs`.
#[derive(Debug, Args)]
pub(crate) struct Docs {
    /// Check links and the order of pages, but do not build the site
    #[arg(long)]
    check: bool,
    /// Serve mdBook as a preprocessor (book.toml): links that leave docs/ become links to the repository
    #[arg(long, hide = true, conflicts_with = "check")]
    preprocess: bool,
    /// Arguments that mdBook gives a preprocessor: `supports RENDERER`
    #[arg(hide = true, requires = "preprocess")]
    question: Vec<String>,
}

pub(crate) fn docs(root: &Path, args: &Docs) -> Result<u8> {
    if args.preprocess {
        return preprocess(&args.question);
    }
    if !links_are_intact(root)? {
        return Ok(1);
    }
    if args.check {
        return Ok(0);
    }
    let local = root.join(MDBOOK);
    let mdbook = match first_line("mdbook", &["--version"]) {
        Some(_) => PathBuf::from("mdbook"),
        None if local.is_file() => local,
        None => {
            return Err(Problem::new(
                "mdbook, which makes the site of docs/, is not installed",
                "cargo install --locked --root target/tools mdbook",
            )
            .into());
        }
    };
    run(Command::new(mdbook).arg("build").current_dir(root))
}

/// Checks all links and prints those that lead nowhere.
pub(crate) fn links_are_intact(root: &Path) -> Result<bool> {
    let findings = check(root)?;
    findings.iter().for_each(|finding| eprintln!("{finding}"));
    Ok(findings.is_empty())
}

/// One line for each broken link, and for each page of the site that its order leaves out.
fn check(root: &Path) -> Result<Vec<String>> {
    let files = markdown_files(root)?;
    let mut pages = BTreeMap::new();
    for file in &files {
        let text = std::fs::read_to_string(root.join(file))
            .with_context(|| format!("reading {}", file.display()))?;
        pages.insert(file.clone(), Page::read(&text));
    }
    let mut findings = vec![];
    for (file, page) in &pages {
        for Link { line, to } in &page.links {
            if let Err(reason) = follow(root, &pages, file, to) {
                findings.push(format!("{}:{line}: `{to}` {reason}", file.display()));
            }
        }
    }
    let Some(summary) = pages.get(Path::new(SUMMARY)) else { return Ok(findings) };
    let listed: BTreeSet<PathBuf> =
        summary.links.iter().filter_map(|link| resolve(Path::new(BOOK), path_of(&link.to))).collect();
    let missing = files.iter().filter(|file| file.starts_with(BOOK) && *file != Path::new(SUMMARY));
    for page in missing.filter(|page| !listed.contains(*page)) {
        findings.push(format!("{}: is not in {SUMMARY}, so the site would lack it", page.display()));
    }
    Ok(findings)
}

/// Paths from the root, sorted.
fn markdown_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![(PathBuf::new(), false)];
    folders.extend(FOLDERS.map(|folder| (PathBuf::from(folder), true)));
    while let Some((folder, descend)) = folders.pop() {
        let path = root.join(&folder);
        if !path.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))? {
            let entry = entry.with_context(|| format!("reading {}", path.display()))?;
            let file = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                if descend && entry.file_name() != "target" {
                    folders.push((file, true));
                }
            } else if file.extension().is_some_and(|extension| extension == "md") {
                files.push(file);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Links of a Markdown file, and the anchors in it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    links: Vec<Link>,
    anchors: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    to: String,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut headings = HashMap::new();
        let mut heading: Option<String> = None;
        for (event, range) in events(text) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap_or_default());
                    // The second heading of a name gets -1, the third -2.
                    let count = headings.entry(slug.clone()).or_insert(0);
                    page.anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
                    *count += 1;
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    }
                }
                Event::Start(tag) => {
                    if let Some(to) = destination(tag) {
                        let line = text[..range.start].matches('\n').count() + 1;
                        page.links.push(Link { line, to: to.into_string() });
                    }
                }
                _ => {}
            }
        }
        page.links.extend(includes(text));
        page
    }
}

/// The files that mdBook puts into a page: `{{#include FILE}}`, also in blocks of code.
fn includes(text: &str) -> impl Iterator<Item = Link> {
    let lines = text.lines().enumerate();
    lines.filter_map(|(i, line)| {
        let (_, rest) = line.split_once("{{#include ")?;
        let (file, _) = rest.split_once("}}")?;
        // Lines of the file may be named behind a colon.
        let to = file.split(':').next().unwrap_or(file).trim();
        Some(Link { line: i + 1, to: to.into() })
    })
}

fn events(text: &str) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
    let github = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_TASKLISTS;
    Parser::new_ext(text, github).into_offset_iter()
}

/// Where a link or an image of this repository leads.
fn destination(tag: Tag<'_>) -> Option<CowStr<'_>> {
    match tag {
        Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } if !is_elsewhere(&dest_url) => {
            Some(dest_url)
        }
        _ => None,
    }
}

/// Whether a link begins with a scheme such as `https:`.
fn is_elsewhere(to: &str) -> bool {
    let scheme = to.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// The anchor that GitHub gives to a heading: lower case, without punctuation, with hyphens for blanks.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A link without its anchor.
fn path_of(to: &str) -> &str {
    to.split_once('#').map_or(to, |(path, _)| path)
}

/// The path from the root of a link in a file of `folder`; `None` for what lies outside of the root.
fn resolve(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(resolved)
}

/// Says why a link leads nowhere.
fn follow(root: &Path, pages: &BTreeMap<PathBuf, Page>, from: &Path, to: &str) -> Result<(), String> {
    let path = path_of(to);
    let target = match path {
        "" => from.to_path_buf(),
        path => resolve(from.parent().unwrap_or(Path::new("")), path)
            .ok_or("leads out of the repository; link to a file in it, by a relative path")?,
    };
    if !root.join(&target).exists() {
        return Err(format!("leads to {}, which does not exist", target.display()));
    }
    let Some((_, anchor)) = to.split_once('#') else { return Ok(()) };
    match pages.get(&target) {
        Some(page) if page.anchors.contains(anchor) => Ok(()),
        Some(_) => Err(format!("names a heading that {} does not have", target.display())),
        None => Err(format!("names a heading of {}, which is not a Markdown file", target.display())),
    }
}

/// Answers mdBook: reads context and book on stdin, and writes the book.
fn preprocess(question: &[String]) -> Result<u8> {
    if question.first().is_some_and(|word| word == "supports") {
        return Ok(0);
    }
    let input: Value =
        serde_json::from_reader(std::io::stdin().lock()).context("reading what mdBook sends")?;
    println!("{}", rewrite_book(input)?);
    Ok(0)
}

/// The book with links that leave it changed to links to the repository.
fn rewrite_book(mut input: Value) -> Result<Value> {
    let pointer = "/0/config/output/html/git-repository-url";
    let Some(repository) = input.pointer(pointer).and_then(Value::as_str).map(str::to_string) else {
        bail!("book.toml lacks `git-repository-url` in [output.html], where links out of docs/ lead to");
    };
    let Some(mut book) = input.get_mut(1).map(Value::take) else { bail!("mdBook sent no book") };
    rewrite_chapters(&mut book, &repository);
    Ok(book)
}

fn rewrite_chapters(value: &mut Value, repository: &str) {
    if let Some(chapter) = value.as_object_mut()
        && let (Some(Value::String(path)), Some(Value::String(text))) =
            (chapter.get("path"), chapter.get("content"))
    {
        let text = rewrite_links(text, Path::new(path), repository);
        chapter.insert("content".into(), text.into());
    }
    match value {
        Value::Array(all) => all.iter_mut().for_each(|value| rewrite_chapters(value, repository)),
        Value::Object(all) => all.values_mut().for_each(|value| rewrite_chapters(value, repository)),
        _ => {}
    }
}

/// The text of a page with links that leave `docs/` changed to links to the repository; `page` is its path in `docs/`.
fn rewrite_links(text: &str, page: &Path, repository: &str) -> String {
    let folder = Path::new(BOOK).join(page.parent().unwrap_or(Path::new("")));
    let mut written = text.to_string();
    let links: Vec<_> = events(text)
        .filter_map(|(event, range)| match event {
            Event::Start(tag) => Some((destination(tag)?.into_string(), range)),
            _ => None,
        })
        .collect();
    // From the last to the first, so that the places of those before stay as they are.
    for (to, range) in links.into_iter().rev() {
        let Some(target) = resolve(&folder, path_of(&to)).filter(|target| !target.starts_with(BOOK)) else {
            continue;
        };
        let anchor = to.find('#').map_or("", |at| &to[at..]);
        let url = format!("{repository}/blob/HEAD/{}{anchor}", target.display());
        // The destination stands behind the link's text.
        if let Some(at) = text[range.clone()].rfind(&to) {
            let start = range.start + at;
            written.replace_range(start..start + to.len(), &url);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn anchors_are_those_of_github() {
        assert_eq!(slug("What to watch"), "what-to-watch");
        assert_eq!(slug("`Sft`: 1.5 times, \"fast\"?"), "sft-15-times-fast");
        assert_eq!(slug("A – b"), "a--b");
        let page = Page::read("# Data\n\n## The `data_path`\n\n## Data\n\nData\n----\n");
        assert_eq!(page.anchors.iter().collect::<Vec<_>>(), ["data", "data-1", "data-2", "the-data_path"]);
    }

    #[test]
    fn links_in_code_and_to_other_sites_are_none() {
        let text = "[a](b.md)\n\n`[c](d.md)` <https://example.org> [e](https://example.org) [f](mailto:a@b.c)\n\n\
                    ```\n[g](h.md)\n```\n\n![i](j.svg) [k][l]\n\n[l]: m.md#n\n";
        let links: Vec<_> = Page::read(text).links.into_iter().map(|link| (link.line, link.to)).collect();
        let expected = [(1, "b.md"), (9, "j.svg"), (9, "m.md#n")].map(|(line, to)| (line, to.to_string()));
        assert_eq!(links, expected);
    }

    #[test]
    fn included_files_count_as_links() {
        let page = Page::read("a\n```toml\n{{#include ../b.toml:2:3}}\n```\n");
        assert_eq!(page.links, [Link { line: 3, to: "../b.toml".into() }]);
    }

    fn repository(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn intact_links_pass() {
        let root = repository(&[
            ("README.md", "[guide](docs/guide/a.md#a-b) [folder](crates) [source](crates/x.rs)"),
            ("crates/x.rs", ""),
            ("docs/SUMMARY.md", "- [A](guide/a.md)"),
            ("docs/guide/a.md", "# A b\n[here](#a-b) [root](../../README.md) [lines](../../crates/x.rs)"),
        ]);
        assert_eq!(check(root.path()).unwrap(), [""; 0]);
    }

    #[test]
    fn each_broken_link_is_named() {
        let root = repository(&[
            (
                "README.md",
                "\n[a](docs/b.md)\n[c](docs/a.md#c)\n[d](../d.md)\n[e](/docs/a.md)\n[f](docs/x.rs#l)",
            ),
            ("docs/SUMMARY.md", "- [A](a.md)"),
            ("docs/a.md", "# A"),
            ("docs/x.rs", ""),
            ("docs/new.md", ""),
            ("target/package/README.md", "[a](b.md)"),
        ]);
        let findings = check(root.path()).unwrap();
        let outside = "leads out of the repository; link to a file in it, by a relative path";
        assert_eq!(
            findings,
            [
                "README.md:2: `docs/b.md` leads to docs/b.md, which does not exist".to_string(),
                "README.md:3: `docs/a.md#c` names a heading that docs/a.md does not have".into(),
                format!("README.md:4: `../d.md` {outside}"),
                format!("README.md:5: `/docs/a.md` {outside}"),
                "README.md:6: `docs/x.rs#l` names a heading of docs/x.rs, which is not a Markdown file"
                    .into(),
                "docs/new.md: is not in docs/SUMMARY.md, so the site would lack it".into(),
            ]
        );
    }

    #[test]
    fn links_out_of_the_book_lead_to_the_repository() {
        let text = "[`../../crates/x`](../../crates/x) and [here](../a.md#b), [`ü`](../../README.md#use)";
        let written = rewrite_links(text, Path::new("guide/page.md"), "https://example.org/r");
        let expected = "[`../../crates/x`](https://example.org/r/blob/HEAD/crates/x) and [here](../a.md#b), \
                        [`ü`](https://example.org/r/blob/HEAD/README.md#use)";
        assert_eq!(written, expected);
    }

    #[test]
    fn chapters_inside_of_chapters_are_rewritten() {
        let chapter = |text: &str| {
            let inner = json!({"Chapter": {"content": text, "path": "guide/a.md", "sub_items": []}});
            json!([{"Chapter": {"content": "", "path": null, "sub_items": [inner]}}])
        };
        let context =
            json!({"config": {"output": {"html": {"git-repository-url": "https://example.org/r"}}}});
        let sent = json!([context, {"items": chapter("[x](../../x.rs)")}]);
        let expected = json!({"items": chapter("[x](https://example.org/r/blob/HEAD/x.rs)")});
        assert_eq!(rewrite_book(sent).unwrap(), expected);
        assert!(rewrite_book(json!([{}, {}])).unwrap_err().to_string().contains("git-repository-url"));
    }
}
