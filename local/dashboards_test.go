package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// dashboard is what is looked at of one for Grafana.
type dashboard struct {
	UID    string `json:"uid"`
	Title  string `json:"title"`
	Panels []struct {
		ID          int    `json:"id"`
		Title       string `json:"title"`
		Description string `json:"description"`
		GridPos     struct{ X, Y, W, H int }
		FieldConfig struct {
			Defaults struct {
				Unit string `json:"unit"`
			} `json:"defaults"`
		} `json:"fieldConfig"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
		Targets []struct {
			Expr string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

// queries are those of all panels, with a value for the one variable that Grafana sets.
func (d *dashboard) queries() (all []string) {
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			all = append(all, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
		}
	}
	return all
}

// dashboards are all that Grafana is given, by their files' names.
func dashboards(t *testing.T) map[string]*dashboard {
	t.Helper()
	files, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	require.NoError(t, err)
	all := map[string]*dashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var d dashboard
		require.NoError(t, json.Unmarshal(text, &d), file)
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = &d
	}
	return all
}

func TestDashboards(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../deploy/grafana/provisioning/datasources/prometheus.yml")
	require.NoError(t, err)
	all := dashboards(t)
	for _, about := range []string{"delivery", "latency", "errors", "attestation"} {
		require.Contains(t, all, "kapsel-"+about)
	}
	for name, d := range all {
		require.Equal(t, name, d.UID, "links lead to the uid")
		require.NotEmpty(t, d.Title)
		require.NotEmpty(t, d.Panels)
		taken, ids := map[[2]int]string{}, map[int]bool{}
		for _, panel := range d.Panels {
			require.NotEmpty(t, panel.Title)
			require.NotEmpty(t, panel.Description, panel.Title)
			require.NotEmpty(t, panel.FieldConfig.Defaults.Unit, panel.Title)
			require.NotEmpty(t, panel.Targets, panel.Title)
			require.Contains(t, string(source), "uid: "+panel.Datasource.UID+"\n", panel.Title)
			require.False(t, ids[panel.ID], "two panels have one ID: %s", panel.Title)
			ids[panel.ID] = true
			at := panel.GridPos
			require.LessOrEqual(t, at.X+at.W, 24, panel.Title)
			for x := range at.W {
				for y := range at.H {
					cell := [2]int{at.X + x, at.Y + y}
					require.Empty(t, taken[cell], "%s lies upon another", panel.Title)
					taken[cell] = panel.Title
				}
			}
		}
	}
}
