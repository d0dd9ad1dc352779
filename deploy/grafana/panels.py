"""Grafana's panels as this project uses them, on the official builders (grafana-foundation-sdk)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24  # of Grafana's grid

Query = tuple[str, str]  # PromQL, and the legend of its series


def query(expr: str, legend: str = "", instant: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().datasource(SOURCE).expr(expr).legend_format(legend or "__auto")
    return made.instant() if instant else made.range()


def thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )


class Sheet:
    """One dashboard, filled row by row from the left."""

    def __init__(self, uid: str, title: str, description: str) -> None:
        self.made = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags(["hneuron-guard"])
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .readonly()
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
            .with_variable(
                dashboard.QueryVariable("model")
                .label("Model")
                .datasource(SOURCE)
                .query("label_values(hguard_probe_info, model)")
                .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
                .include_all(True)
                .all_value(".*")
            )
        )
        self._x = self._y = self._height = 0

    def row(self, title: str) -> None:
        self._break()
        self.made.with_row(dashboard.Row(title).grid_pos(_at(0, self._y, WIDTH, 1)))
        self._y += 1

    def number(
        self,
        title: str,
        expr: str,
        unit: str,
        description: str,
        width: int = 4,
        steps: Sequence[tuple[float | None, str]] = ((None, "text"),),
        legend: str = "",
    ) -> None:
        """The latest value as a large number. ``legend`` shows a label in place of the value."""
        panel = stat.Panel().unit(unit).thresholds(thresholds(steps))
        panel = panel.color_mode(kinds.BigValueColorMode.VALUE).graph_mode(kinds.BigValueGraphMode.NONE)
        if legend:
            panel = panel.text_mode(kinds.BigValueTextMode.NAME)
        self._add(panel.with_target(query(expr, legend, instant=True)), title, description, width, 4)

    def lines(
        self,
        title: str,
        queries: Sequence[Query],
        unit: str,
        description: str,
        width: int = 12,
        stacked: bool = False,
        steps: Sequence[tuple[float | None, str]] = (),
        top: float | None = None,
        colors: Mapping[str, str] | None = None,
    ) -> None:
        """Series over time; ``steps`` draws thresholds, ``top`` fixes the axis, ``colors`` those of series by name."""
        panel = timeseries.Panel().unit(unit).min(0).line_width(1).fill_opacity(30 if stacked else 8)
        panel = panel.show_points(kinds.VisibilityMode.NEVER).legend(_legend())
        if stacked:
            panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
        if steps:
            panel = panel.thresholds(thresholds(steps))
            panel = panel.thresholds_style(
                common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
            )
        if top is not None:
            panel = panel.max(top)
        for name, color in (colors or {}).items():
            panel = panel.override_by_name(name, [DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
        for expr, legend in queries:
            panel = panel.with_target(query(expr, legend))
        self._add(panel, title, description, width, 8)

    def heat(self, title: str, expr: str, unit: str, description: str, width: int = 12) -> None:
        """A histogram over time; ``expr`` gives its increases by ``le``."""
        panel = (
            heatmap.Panel()
            .calculate(False)
            .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
            .y_axis(heatmap.YAxisConfig().unit(unit))
            .with_target(query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))
        )
        self._add(panel, title, description, width, 8)

    def bars(self, title: str, queries: Sequence[Query], unit: str, description: str, width: int = 12) -> None:
        """The latest values side by side."""
        panel = bargauge.Panel().unit(unit).min(0).orientation(kinds.VizOrientation.HORIZONTAL)
        panel = panel.display_mode(kinds.BarGaugeDisplayMode.GRADIENT)
        for expr, legend in queries:
            panel = panel.with_target(query(expr, legend, instant=True))
        self._add(panel, title, description, width, 8)

    def labels(self, title: str, expr: str, description: str, width: int = 12) -> None:
        """A series for each line, its labels in columns."""
        target = query(expr, instant=True).format(PromQueryFormat.TABLE)
        self._add(table.Panel().with_target(target), title, description, width, 8)

    def build(self) -> Any:
        return self.made.build()

    def _add(self, panel: Any, title: str, description: str, width: int, height: int) -> None:
        if self._x + width > WIDTH:
            self._break()
        placed = panel.title(title).description(description).datasource(SOURCE)
        self.made.with_panel(placed.grid_pos(_at(self._x, self._y, width, height)))
        self._x, self._height = self._x + width, max(self._height, height)

    def _break(self) -> None:
        self._x, self._y, self._height = 0, self._y + self._height, 0


def _legend() -> common.VizLegendOptions:
    made = common.VizLegendOptions().show_legend(True)
    return made.display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM)


def _at(x: int, y: int, width: int, height: int) -> GridPos:
    return GridPos(h=height, w=width, x=x, y=y)
