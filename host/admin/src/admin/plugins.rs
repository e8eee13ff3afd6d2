//! Listing and changing plugins.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use tokio::sync::OwnedSemaphorePermit;

use super::body::{JsonBody, OfferedComponent};
use super::error::ApiError;
use super::view::{
    EmptyBody, FailureView, HistogramView, HookView, LimitsView, MoveBody, PluginView, PluginsView,
    RechecksView, RefusedView, ReloadBody, State as PluginState, SwapView, VerdictView, unix_ms,
};
use super::{Admin, blocking};
use switchyard_middleware::changes::{ChangeError, Offer, Place, Status};
use switchyard_middleware::stats::{Hook, Initiator, RecheckReading, Swap};
use switchyard_middleware::{Middleware, plugin};

/// `GET /v1/plugins`
pub async fn list(State(admin): State<Admin>) -> Result<Json<PluginsView>, ApiError> {
    // The memory of an instance can be read only between its calls.
    blocking(move || {
        let middleware = &admin.services.middleware;
        Ok(Json(PluginsView {
            directory: middleware.directory().map(|directory| directory.display().to_string()),
            plugins: all(middleware),
            refused: refused(middleware),
        }))
    })
    .await
}

/// `GET /v1/plugins/{plugin}`
pub async fn show(
    State(admin): State<Admin>,
    Path(plugin): Path<String>,
) -> Result<Json<PluginView>, ApiError> {
    blocking(move || {
        let middleware = &admin.services.middleware;
        let slot = middleware.slot_of(&plugin)?;
        let found = all(middleware).into_iter().find(|plugin| plugin.slot == slot);
        Ok(Json(found.ok_or(ChangeError::NoSuchPlugin(plugin))?))
    })
    .await
}

/// `POST /v1/plugins/{plugin}`
pub async fn load(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(slot): Path<String>,
    offered: OfferedComponent,
) -> Result<Json<SwapView>, ApiError> {
    let (offer, place) = offer(offered);
    change(admin, move |middleware| {
        let _place = place;
        middleware.load(&slot, offer, &by)
    })
    .await
}

/// `POST /v1/plugins/{plugin}/swap`
pub async fn swap(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(plugin): Path<String>,
    offered: OfferedComponent,
) -> Result<Json<SwapView>, ApiError> {
    let (offer, place) = offer(offered);
    change(admin, move |middleware| {
        let _place = place;
        middleware.swap(&plugin, offer, &by)
    })
    .await
}

/// `DELETE /v1/plugins/{plugin}`
pub async fn remove(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(plugin): Path<String>,
) -> Result<Json<SwapView>, ApiError> {
    change(admin, move |middleware| middleware.remove(&plugin, &by)).await
}

/// `POST /v1/plugins/{plugin}/rollback`
pub async fn roll_back(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(plugin): Path<String>,
    JsonBody(EmptyBody {}): JsonBody<EmptyBody>,
) -> Result<Json<SwapView>, ApiError> {
    change(admin, move |middleware| middleware.roll_back(&plugin, &by)).await
}

/// `POST /v1/plugins/{plugin}/move`
pub async fn move_to(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(plugin): Path<String>,
    JsonBody(body): JsonBody<MoveBody>,
) -> Result<Json<SwapView>, ApiError> {
    let place = match body {
        MoveBody { before: Some(slot), after: None, to: None } => Place::Before(slot),
        MoveBody { before: None, after: Some(slot), to: None } => Place::Behind(slot),
        MoveBody { before: None, after: None, to: Some(slot) } => Place::Slot(slot),
        _ => {
            let words = "the body must have one of \"before\", \"after\" and \"to\"";
            return Err(ApiError::bad_request(words));
        }
    };
    change(admin, move |middleware| middleware.move_to(&plugin, &place, &by)).await
}

/// `POST /v1/plugins/{plugin}/reload`
pub async fn reload(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(plugin): Path<String>,
    JsonBody(ReloadBody { config, fresh }): JsonBody<ReloadBody>,
) -> Result<Json<SwapView>, ApiError> {
    change(admin, move |middleware| middleware.reload(&plugin, config, fresh, &by)).await
}

/// Runs a change of the middleware on a blocking thread. The change is completed even if the
/// client disconnects.
async fn change(
    admin: Admin,
    change: impl FnOnce(&Middleware) -> Result<Swap, ChangeError> + Send + 'static,
) -> Result<Json<SwapView>, ApiError> {
    blocking(move || {
        let swap = change(&admin.services.middleware)?;
        Ok(Json(SwapView::from(&swap)))
    })
    .await
}

fn offer(offered: OfferedComponent) -> (Offer, OwnedSemaphorePermit) {
    let OfferedComponent { wasm, file, config, is_fresh, place } = offered;
    (Offer { wasm, file, toml: config, is_fresh }, place)
}

fn all(middleware: &Middleware) -> Vec<PluginView> {
    middleware
        .status()
        .into_iter()
        .zip(1..)
        .map(|(status, position)| view(&status, position))
        .collect()
}

fn view(status: &Status, position: usize) -> PluginView {
    let Status { plugin, config, wasm, is_configured, before, since, by, missing } = status;
    let hooks = plugin.hooks();
    let hooks = [
        ("admission", hooks.admission),
        ("access", hooks.access),
        ("messages", hooks.messages),
        ("deliveries", hooks.deliveries),
        ("snapshot", hooks.snapshot),
    ];
    let memory_bytes = plugin.memory_bytes();
    PluginView {
        slot: config.slot.clone(),
        name: config.name.clone(),
        position,
        version: config.version.clone(),
        own_version: switchyard_wasm::own_version(wasm),
        component_bytes: wasm.len(),
        file: config.file.display().to_string(),
        config_file: is_configured.then(|| match config.file.extension() {
            Some(_) => config.file.with_extension("toml").display().to_string(),
            None => config.file.display().to_string(),
        }),
        file_missing: *missing,
        policy: plugin.policy,
        policy_source: plugin.policy_source,
        declared: config.declared.clone(),
        hooks: hooks.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()).collect(),
        state: match plugin.state() {
            plugin::State::Running => PluginState::Running,
            plugin::State::Rebuilding { .. } => PluginState::Rebuilding,
            plugin::State::Parked { .. } => PluginState::Parked,
        },
        instances: config.instances,
        spares: config.limits.spares,
        memory_bytes,
        isolated_connections: plugin.isolated(),
        retried_items: plugin.stats.items_retried(),
        limits: LimitsView {
            call_budget_ms: config.limits.call_budget.as_millis() as u64,
            init_budget_ms: config.limits.init_budget.as_millis() as u64,
            memory_bytes_max: config.limits.memory_bytes_max,
            log_lines_per_second_max: config.limits.log_lines_per_second_max,
            counters: config.counters.clone(),
        },
        since_ms: unix_ms(*since),
        by: by.name().to_owned(),
        previous: before.as_ref().map(|before| before.as_ref().to_owned()),
        rebuilds: plugin.stats.rebuilds(),
        rechecks: rechecks(plugin.stats.rechecks().read()),
        stats: Hook::ALL.into_iter().filter_map(|hook| hook_view(plugin, hook)).collect(),
        failures: plugin.stats.failures().iter().map(FailureView::from).collect(),
    }
}

fn rechecks(reading: RecheckReading) -> RechecksView {
    let RecheckReading { running, checked, ended, unanswered } = reading;
    RechecksView { running, checked, ended, unanswered }
}

/// The counters of a hook; none: it was never called.
fn hook_view(plugin: &Arc<plugin::Plugin>, hook: Hook) -> Option<HookView> {
    let stats = plugin.stats.of(hook);
    let [calls, items, faults] = stats.totals();
    let verdicts = stats.verdicts().filter(|(_, count)| *count > 0);
    let verdicts: Vec<VerdictView> =
        verdicts.map(|(verdict, count)| VerdictView { verdict, count }).collect();
    (calls > 0 || !verdicts.is_empty()).then(|| HookView {
        hook,
        calls,
        items,
        faults,
        verdicts,
        time: HistogramView::new(&stats.time.read()),
    })
}

fn refused(middleware: &Middleware) -> Vec<RefusedView> {
    let refused = middleware.refused().into_iter().map(|(slot, at, error)| RefusedView {
        slot,
        at_ms: unix_ms(at),
        plugin: error.plugin,
        step: error.step.to_owned(),
        message: error.problem,
        file: error.file.display().to_string(),
    });
    refused.collect()
}
