//! The environment variables as typed, owned values, for the flusher and the tools.
//!
//! The preloaded library reads the same variables by the same rules: a path must come out byte-identical on both
//! sides, because the stage directory is named after the store's path. Nothing here may create a file or directory.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD};
use sheaf_common::configuration::{self, Layout, Level, PATTERN_MAX, PATTERNS_MAX, Reason, VARIABLES, ValueError};
use sheaf_common::{layout, pattern, room};

use crate::stage::{self, spool};
use crate::store::Choice;

/// SHEAF_STORE_TIMEOUT when it is unset.
const STORE_TIMEOUT: Duration = Duration::from_secs(600);
/// SHEAF_WATERMARK_MS when it is unset.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(5);
/// SHEAF_SKEW_MS when it is unset.
const SKEW: Duration = Duration::from_secs(1);
/// The tier when SHEAF_STAGE is unset.
const DEFAULT_TIER: &str = "/dev/shm";

/// What the flusher does when the last program has ended (SHEAF_ON_EXIT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Publish everything.
    Drain,
    /// Leave it staged for `sheaf drain`.
    Leave,
}

/// What is read when the newest version of a file is damaged (SHEAF_DAMAGED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// Nothing.
    Refuse,
    /// An older version that is intact.
    Older,
}

impl Damaged {
    /// The setting in the environment, for tools that read a store and need no others.
    ///
    /// # Errors
    /// When the value is refused.
    pub fn from_environment() -> Result<Damaged, SettingsError> {
        damaged(std::env::var_os("SHEAF_DAMAGED").filter(|value| !value.is_empty()).map(OsStringExt::into_vec))
    }
}

/// Every setting of the flusher side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// SHEAF_PATHS with canonical fixed prefixes. Empty only when SHEAF_STORE names the store.
    pub patterns: Vec<Vec<u8>>,
    /// SHEAF_EXCLUDE with canonical fixed prefixes.
    pub excludes: Vec<Vec<u8>>,
    /// SHEAF_STAGE: the tiers, as spelled.
    pub stage_tiers: Vec<PathBuf>,
    /// SHEAF_STAGE_LIMIT, in bytes.
    pub stage_limit: Option<u64>,
    /// The store's canonical path.
    pub store: PathBuf,
    /// SHEAF_LAYOUT.
    pub layout: Layout,
    /// SHEAF_ON_EXIT.
    pub on_exit: OnExit,
    /// SHEAF_BANDWIDTH, in bytes per second.
    pub bandwidth: Option<u64>,
    /// SHEAF_STORE_TIMEOUT.
    pub store_timeout: Duration,
    /// SHEAF_TIMEOUT.
    pub timeout: Duration,
    /// SHEAF_DAMAGED.
    pub damaged: Damaged,
    /// SHEAF_WATERMARK_MS.
    pub watermark_interval: Duration,
    /// SHEAF_CUT.
    pub cut: Choice,
    /// SHEAF_SKEW_MS.
    pub skew: Duration,
    /// SHEAF_LOG's level.
    pub log_level: Level,
    /// SHEAF_LOG's file.
    pub log_file: Option<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
}

/// Why there are no settings: a text that names the variable, the value and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(String);

impl fmt::Display for SettingsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for SettingsError {}

impl From<ValueError<'_>> for SettingsError {
    fn from(error: ValueError<'_>) -> SettingsError {
        let why = match error.reason {
            Reason::Pattern(problem) => problem.advice().to_string(),
            Reason::TooMany => format!("at most {PATTERNS_MAX} entries of {PATTERN_MAX} bytes"),
            Reason::NotAccepted => {
                let accepts = VARIABLES.iter().find(|variable| variable.name == error.name).map_or("", |v| v.accepts);
                format!("it takes {accepts}")
            }
        };
        SettingsError(format!("{}: '{}' is refused: {why}", error.name, String::from_utf8_lossy(error.value)))
    }
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// When a value is refused, or neither SHEAF_PATHS nor SHEAF_STORE is set.
    pub fn from_environment() -> Result<Settings, SettingsError> {
        Settings::from_lookup(std::env::var_os)
    }

    /// Reads the variables from `lookup` instead of the environment. An empty value counts as unset.
    ///
    /// # Errors
    /// As [`Settings::from_environment`].
    pub fn from_lookup(lookup: impl Fn(&'static str) -> Option<OsString>) -> Result<Settings, SettingsError> {
        let variables: Vec<(&'static str, OsString)> = VARIABLES
            .iter()
            .filter_map(|variable| Some((variable.name, lookup(variable.name)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let value =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes().to_vec());
        let paths = value("SHEAF_PATHS");
        check_durable(value("SHEAF_DURABLE"))?;
        let (log_level, log_file) = match value("SHEAF_LOG") {
            Some(text) => {
                let (level, file) = configuration::parse_log(&text).ok_or_else(|| not_accepted("SHEAF_LOG", &text))?;
                (level, file.map(path_of))
            }
            None => (Level::Warn, None),
        };
        Ok(Settings {
            patterns: canonical_patterns("SHEAF_PATHS", paths.as_deref().unwrap_or_default())?,
            excludes: canonical_patterns("SHEAF_EXCLUDE", &value("SHEAF_EXCLUDE").unwrap_or_default())?,
            stage_tiers: tiers(value("SHEAF_STAGE"))?,
            stage_limit: size("SHEAF_STAGE_LIMIT", value("SHEAF_STAGE_LIMIT"))?,
            store: store(value("SHEAF_STORE"), paths.as_deref())?,
            layout: value("SHEAF_LAYOUT").map_or(Ok(Layout::Node), |text| layout(&text))?,
            on_exit: on_exit(value("SHEAF_ON_EXIT"))?,
            bandwidth: size("SHEAF_BANDWIDTH", value("SHEAF_BANDWIDTH"))?,
            store_timeout: store_timeout(value("SHEAF_STORE_TIMEOUT"))?,
            timeout: timeout(value("SHEAF_TIMEOUT"))?,
            damaged: damaged(value("SHEAF_DAMAGED"))?,
            watermark_interval: milliseconds("SHEAF_WATERMARK_MS", value("SHEAF_WATERMARK_MS"))?
                .unwrap_or(WATERMARK_INTERVAL),
            cut: value("SHEAF_CUT").map_or(Ok(Choice::Newest), |text| choice(&text))?,
            skew: milliseconds("SHEAF_SKEW_MS", value("SHEAF_SKEW_MS"))?.unwrap_or(SKEW),
            log_level,
            log_file,
            variables,
        })
    }

    /// The variables as they were given, to be handed to a flusher or a program that must come to the same settings.
    pub fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// The stage directory of this store and user in a tier, whether it exists or not.
    pub fn stage_directory(&self, tier: &Path) -> PathBuf {
        let user = rustix::process::geteuid().as_raw();
        let name = layout::hex_name(self.store.as_os_str().as_bytes());
        tier.join(format!("sheaf-{user}")).join(OsStr::from_bytes(&name))
    }

    /// Where segments of this store and user wait in a tier, whether there are any or not.
    pub fn spool_directory(&self, tier: &Path) -> PathBuf {
        let mut name = self.stage_directory(tier).into_os_string();
        name.push(spool::SUFFIX);
        name.into()
    }

    /// Whether something waits in a tier for the store, or may: one of them does not say.
    pub fn has_spooled(&self) -> bool {
        let has_none =
            |tier: &PathBuf| spool::segment_files(&self.spool_directory(tier)).is_ok_and(|all| all.is_empty());
        !self.stage_tiers.iter().all(has_none)
    }

    /// The stage directory that a flusher has something to do for: one that exists, or that is to be made because a
    /// stage that is gone has left something in a further tier.
    pub fn stage_to_serve(&self) -> Option<PathBuf> {
        self.existing_stage().or_else(|| self.find_stage().ok().filter(|_| self.has_spooled()))
    }

    /// The tiers behind the one that a stage lies in, as far as they can hold anything, and it is not the same file
    /// system that they take it from.
    pub fn further_tiers(&self, stage: &Path) -> Vec<PathBuf> {
        // There are no aggregates that what waits could go to.
        if self.layout == Layout::Files {
            return Vec::new();
        }
        let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
        let mut tiers = self.stage_tiers.iter().skip_while(|tier| self.stage_directory(tier) != stage);
        let first = tiers.next().and_then(|tier| device(tier));
        let can_serve = |tier: &&PathBuf| device(tier) != first && self.refuse_tier(tier).is_none();
        tiers.filter(can_serve).cloned().collect()
    }

    /// The stage directory that exists, in the first tier that has one. A name that is no directory of this user's
    /// alone is no stage.
    pub fn existing_stage(&self) -> Option<PathBuf> {
        let ours = |path: &Path| stage::check_private(path).is_ok();
        self.stage_tiers
            .iter()
            .map(|tier| self.stage_directory(tier))
            .find(|stage| stage.parent().is_some_and(ours) && ours(stage))
    }

    /// The stage directory that exists, else the one in the first tier that can serve and has room, or that can serve
    /// at least.
    ///
    /// # Errors
    /// Names every tier and why it cannot serve.
    pub fn find_stage(&self) -> Result<PathBuf, SettingsError> {
        if let Some(stage) = self.existing_stage() {
            return Ok(stage);
        }
        let (mut usable, mut problems) = (Vec::new(), Vec::new());
        for tier in &self.stage_tiers {
            match self.refuse_tier(tier) {
                None => usable.push(tier),
                Some(problem) => problems.push(format!("{}: {problem}", tier.display())),
            }
        }
        if let Some(tier) = usable.iter().find(|tier| has_room(tier)).or(usable.first()) {
            return Ok(self.stage_directory(tier));
        }
        Err(SettingsError(format!("SHEAF_STAGE: no tier can hold the stage ({})", problems.join("; "))))
    }

    /// Why a tier cannot hold the stage, if so.
    pub fn refuse_tier(&self, tier: &Path) -> Option<String> {
        if !tier.is_dir() {
            return Some("not a directory; create it or name another".to_string());
        }
        if let Err(error) = rustix::fs::accessat(CWD, tier, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            return Some(format!("this user cannot create files in it ({error})"));
        }
        if self.stage_directory(tier).as_os_str().len() > layout::STAGE_PATH_MAX {
            return Some(format!("the stage's path would be longer than {} bytes", layout::STAGE_PATH_MAX));
        }
        let stage = self.stage_directory(tier);
        let existing = stage.ancestors().take(2).filter(|path| path.symlink_metadata().is_ok());
        let stranger = existing.filter_map(|path| stage::check_private(path).err()).last();
        let stranger = stranger.or_else(|| stage::check_ancestors(tier).err());
        stranger.map(|error| error.to_string()).or_else(|| stage::refuse_file_system(tier).err())
    }
}

/// Whether a tier has as much room as is always kept free in a stage.
fn has_room(tier: &Path) -> bool {
    rustix::fs::statvfs(tier)
        .is_ok_and(|status| status.f_bavail * status.f_frsize >= room::reserve_bytes(status.f_blocks * status.f_frsize))
}

/// An absolute path with the symbolic links of its longest existing ancestor resolved. What does not exist yet is kept
/// as spelled, but for slashes at its ends: the library does the same, byte by byte.
pub fn canonical(path: &Path) -> PathBuf {
    let full = path.as_os_str().as_bytes();
    let mut ancestor = full;
    while let Some(slash) = trim_end(ancestor).iter().rposition(|byte| *byte == b'/') {
        if let Ok(resolved) = path_of(ancestor).canonicalize() {
            return attach(resolved, full.get(ancestor.len()..).unwrap_or_default());
        }
        ancestor = ancestor.get(..slash).unwrap_or_default();
    }
    attach(PathBuf::from("/"), full.get(ancestor.len()..).unwrap_or_default())
}

/// `rest` in `directory`, without the slashes at its ends.
fn attach(directory: PathBuf, rest: &[u8]) -> PathBuf {
    let start = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
    match trim_end(rest.get(start..).unwrap_or_default()) {
        b"" => directory,
        rest => directory.join(OsStr::from_bytes(rest)),
    }
}

fn trim_end(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    path.get(..end).unwrap_or_default()
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn not_accepted(name: &'static str, value: &[u8]) -> SettingsError {
    ValueError { name, value, reason: Reason::NotAccepted }.into()
}

fn canonical_patterns(name: &'static str, value: &[u8]) -> Result<Vec<Vec<u8>>, SettingsError> {
    configuration::check_patterns(name, value)?;
    Ok(configuration::entries(value).map(canonical_pattern).collect())
}

/// The pattern with its fixed prefix resolved. A resolved prefix may hold characters that are special in patterns.
fn canonical_pattern(text: &[u8]) -> Vec<u8> {
    let prefix = pattern::fixed_prefix(text);
    let resolved = canonical(&path_of(prefix)).into_os_string().into_vec();
    let rest = text.get(prefix.len()..).unwrap_or_default();
    let mut result = Vec::with_capacity(resolved.len() + rest.len() + 1);
    for byte in resolved.iter().filter(|_| resolved != b"/") {
        if b"*?[\\".contains(byte) {
            result.push(b'\\');
        }
        result.push(*byte);
    }
    if rest.first() != Some(&b'/') {
        result.push(b'/');
    }
    result.extend_from_slice(rest);
    result
}

fn tiers(value: Option<Vec<u8>>) -> Result<Vec<PathBuf>, SettingsError> {
    let value = value.unwrap_or_else(|| DEFAULT_TIER.into());
    configuration::check_directories("SHEAF_STAGE", &value)?;
    Ok(configuration::entries(&value).map(path_of).collect())
}

fn store(value: Option<Vec<u8>>, paths: Option<&[u8]>) -> Result<PathBuf, SettingsError> {
    if let Some(value) = value {
        configuration::check_directories("SHEAF_STORE", &value)?;
        let mut entries = configuration::entries(&value);
        return match (entries.next(), entries.next()) {
            (Some(directory), None) => Ok(canonical(&path_of(directory))),
            _ => Err(not_accepted("SHEAF_STORE", &value)),
        };
    }
    let first = paths.and_then(|value| configuration::entries(value).next()).ok_or_else(|| {
        SettingsError(
            "neither SHEAF_PATHS nor SHEAF_STORE is set: set SHEAF_PATHS to the checkpoint paths, as the program had it"
                .to_string(),
        )
    })?;
    Ok(canonical(&path_of(pattern::fixed_prefix(first))).join(layout::STORE))
}

fn size(name: &'static str, value: Option<Vec<u8>>) -> Result<Option<u64>, SettingsError> {
    value.map(|text| configuration::parse_size(&text).ok_or_else(|| not_accepted(name, &text))).transpose()
}

fn store_timeout(value: Option<Vec<u8>>) -> Result<Duration, SettingsError> {
    let number =
        value.map(|text| configuration::parse_number(&text).ok_or_else(|| not_accepted("SHEAF_STORE_TIMEOUT", &text)));
    Ok(number.transpose()?.map_or(STORE_TIMEOUT, Duration::from_secs))
}

/// SHEAF_SKEW_MS in the environment, for tools that read a store and need no others.
///
/// # Errors
/// When the value is refused.
pub fn skew_from_environment() -> Result<Duration, SettingsError> {
    let value = std::env::var_os("SHEAF_SKEW_MS").filter(|value| !value.is_empty()).map(OsStringExt::into_vec);
    Ok(milliseconds("SHEAF_SKEW_MS", value)?.unwrap_or(SKEW))
}

fn choice(text: &[u8]) -> Result<Choice, SettingsError> {
    let known = std::str::from_utf8(text).ok().and_then(Choice::parse);
    known.ok_or_else(|| not_accepted("SHEAF_CUT", text))
}

fn milliseconds(name: &'static str, value: Option<Vec<u8>>) -> Result<Option<Duration>, SettingsError> {
    let number = value.map(|text| configuration::parse_number(&text).ok_or_else(|| not_accepted(name, &text)));
    Ok(number.transpose()?.map(Duration::from_millis))
}

fn timeout(value: Option<Vec<u8>>) -> Result<Duration, SettingsError> {
    let milliseconds =
        value.map(|text| configuration::parse_timeout_ms(&text).ok_or_else(|| not_accepted("SHEAF_TIMEOUT", &text)));
    Ok(Duration::from_millis(milliseconds.transpose()?.unwrap_or(configuration::TIMEOUT_MS)))
}

/// Only the library acts on SHEAF_DURABLE; a value that it would refuse is refused here, too.
fn check_durable(value: Option<Vec<u8>>) -> Result<(), SettingsError> {
    match value.filter(|text| configuration::parse_durable(text).is_none()) {
        Some(refused) => Err(not_accepted("SHEAF_DURABLE", &refused)),
        None => Ok(()),
    }
}

fn layout(text: &[u8]) -> Result<Layout, SettingsError> {
    configuration::parse_layout(text).ok_or_else(|| not_accepted("SHEAF_LAYOUT", text))
}

fn on_exit(value: Option<Vec<u8>>) -> Result<OnExit, SettingsError> {
    match value.as_deref() {
        None | Some(b"drain") => Ok(OnExit::Drain),
        Some(b"leave") => Ok(OnExit::Leave),
        Some(other) => Err(not_accepted("SHEAF_ON_EXIT", other)),
    }
}

fn damaged(value: Option<Vec<u8>>) -> Result<Damaged, SettingsError> {
    match value.as_deref() {
        None | Some(b"refuse") => Ok(Damaged::Refuse),
        Some(b"older") => Ok(Damaged::Older),
        Some(other) => Err(not_accepted("SHEAF_DAMAGED", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    fn settings(values: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_lookup(|name| {
            values.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn prefixes_are_resolved_and_the_missing_rest_is_kept() {
        let scene = tempfile::tempdir().unwrap();
        let root = scene.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink(root.join("real"), root.join("link")).unwrap();
        let patterns = format!("{0}/link/new/deep/r?.*:/*", root.display());
        let found = settings(&[("SHEAF_PATHS", &patterns)]).unwrap();
        let expected = format!("{}/real/new/deep/r?.*", root.display());
        assert_eq!(found.patterns, [expected.into_bytes(), b"/*".to_vec()]);
        assert_eq!(found.store, root.join("real/new/deep/.sheaf"));
    }

    #[test]
    fn a_resolved_prefix_with_special_characters_is_taken_literally() {
        let scene = tempfile::tempdir().unwrap();
        let root = scene.path().canonicalize().unwrap();
        fs::create_dir(root.join("a*[b")).unwrap();
        symlink(root.join("a*[b"), root.join("link")).unwrap();
        let found = settings(&[("SHEAF_PATHS", &format!("{}/link/**", root.display()))]).unwrap();
        let inside = root.join("a*[b/x");
        assert!(pattern::matches(&found.patterns[0], inside.as_os_str().as_bytes()));
        assert_eq!(found.store, root.join("a*[b/.sheaf"));
    }

    #[test]
    fn what_does_not_exist_is_kept_byte_by_byte() {
        for (spelled, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/nowhere-sheaf", "/nowhere-sheaf"),
            ("//nowhere-sheaf//", "/nowhere-sheaf"),
            ("/nowhere-sheaf/a//b/./", "/nowhere-sheaf/a//b/."),
            ("/usr/..//nowhere-sheaf/../x", "/nowhere-sheaf/../x"),
        ] {
            assert_eq!(canonical(Path::new(spelled)).as_os_str(), expected, "{spelled}");
        }
    }

    #[test]
    fn the_store_is_the_same_however_it_is_spelled() {
        let scene = tempfile::tempdir().unwrap();
        let root = scene.path().canonicalize().unwrap();
        let plain = settings(&[("SHEAF_STORE", &format!("{}/new", root.display()))]).unwrap();
        let spelled = settings(&[("SHEAF_STORE", &format!("{}//new/", root.display()))]).unwrap();
        assert_eq!(plain.store.as_os_str(), spelled.store.as_os_str());
        fs::create_dir(root.join("new")).unwrap();
        let exists = settings(&[("SHEAF_STORE", &format!("{}/new/", root.display()))]).unwrap();
        assert_eq!(plain.store.as_os_str(), exists.store.as_os_str());
    }

    #[test]
    fn values_are_typed() {
        let found = settings(&[
            ("SHEAF_PATHS", "/nowhere-sheaf/**"),
            ("SHEAF_EXCLUDE", "/nowhere-sheaf/log.*"),
            ("SHEAF_STAGE", "/local:/dev/shm"),
            ("SHEAF_STAGE_LIMIT", "4G"),
            ("SHEAF_BANDWIDTH", "1M"),
            ("SHEAF_LAYOUT", "shared:3"),
            ("SHEAF_ON_EXIT", "leave"),
            ("SHEAF_STORE_TIMEOUT", "7"),
            ("SHEAF_TIMEOUT", "3"),
            ("SHEAF_DURABLE", "close"),
            ("SHEAF_LOG", "debug,/tmp/log"),
            ("SHEAF_STORE", ""),
        ])
        .unwrap();
        assert_eq!(found.stage_tiers, [PathBuf::from("/local"), PathBuf::from("/dev/shm")]);
        assert_eq!((found.stage_limit, found.bandwidth), (Some(4 << 30), Some(1 << 20)));
        assert_eq!((found.layout, found.on_exit), (Layout::Shared(3), OnExit::Leave));
        assert_eq!((found.store_timeout, found.timeout), (Duration::from_secs(7), Duration::from_secs(3)));
        assert_eq!((found.log_level, found.log_file), (Level::Debug, Some(PathBuf::from("/tmp/log"))));
        assert_eq!(found.store, Path::new("/nowhere-sheaf/.sheaf"));
        assert_eq!(found.variables.len(), 11);
    }

    #[test]
    fn refused_values_name_the_variable_and_the_value() {
        for (name, value) in [
            ("SHEAF_PATHS", "ckpt/**"),
            ("SHEAF_EXCLUDE", "/a/[b"),
            ("SHEAF_STAGE", "nvme"),
            ("SHEAF_STAGE_LIMIT", "lots"),
            ("SHEAF_STORE", "/a:/b"),
            ("SHEAF_LAYOUT", "shared:0"),
            ("SHEAF_ON_EXIT", "stay"),
            ("SHEAF_BANDWIDTH", "0"),
            ("SHEAF_STORE_TIMEOUT", "1M"),
            ("SHEAF_TIMEOUT", "0"),
            ("SHEAF_DURABLE", "often"),
            ("SHEAF_LOG", "loud"),
        ] {
            let base = ("SHEAF_PATHS", "/a/**");
            let error = settings(&[(name, value), base]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        assert!(settings(&[]).is_err());
    }

    #[test]
    fn the_existing_stage_wins_over_the_first_usable_tier() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir_in("/dev/shm").unwrap());
        let tiers = format!("/missing-sheaf:{}:{}", first.path().display(), second.path().display());
        let found = settings(&[("SHEAF_PATHS", "/nowhere-sheaf/**"), ("SHEAF_STAGE", &tiers)]).unwrap();
        assert_eq!(found.existing_stage(), None);
        assert_eq!(found.find_stage().unwrap(), found.stage_directory(first.path()));
        let stage = found.stage_directory(second.path());
        fs::create_dir_all(&stage).unwrap();
        assert_eq!(found.existing_stage(), None, "open to others");
        for path in stage.ancestors().take(2) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert_eq!(found.existing_stage().as_deref(), Some(&*stage));
        assert_eq!(found.find_stage().unwrap(), stage);
        let none = settings(&[("SHEAF_PATHS", "/nowhere-sheaf/**"), ("SHEAF_STAGE", "/missing-sheaf")]).unwrap();
        assert!(none.find_stage().unwrap_err().to_string().contains("/missing-sheaf"));
    }
}
