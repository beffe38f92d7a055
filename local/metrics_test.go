package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
)

// What a whole system says of itself is true, follows Prometheus's conventions, and is what rules and dashboards ask for.
func TestMetricsOfAWholeSystem(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	broken := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	never, waiting := client.NewDestination{URL: "http://127.0.0.1:1", Schedule: schedule(100)}, client.NewDestination{URL: broken.URL, Schedule: schedule(80_000_000)}
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		endpoint := s.createLane(t, lane, client.NewDestination{URL: healthy.URL}, client.NewDestination{URL: broken.URL, Schedule: schedule(100)}, never)
		s.mustIngest(t, endpoint, "{}")
	}
	s.awaitSealed(t, time.Minute)
	parked := s.createEndpoint(t, waiting)
	s.mustIngest(t, parked, "{}")
	s.awaitZero(t, time.Minute, "select 1 - count(*) from delivery_queue where claim_id is null and attempt = 2")

	var families map[string]*dto.MetricFamily
	require.Eventually(t, func() bool { // what waits is read every 10 s
		families = gather(t, s.registry)
		return sum(families, "kapsel_queue_deliveries", "state", "later") == 1 && sum(families, "kapsel_log_oldest_unattested_seconds") == 0
	}, time.Minute, time.Second)
	leaves := float64(s.count(t, "select count(*) from merkle_leaves"))
	for _, want := range []struct {
		value  float64
		family string
		labels []string
	}{
		{2, "kapsel_attempts_total", []string{"outcome", "delivered", "status", "2xx", "error", "none"}},
		{3, "kapsel_attempts_total", []string{"outcome", "retry", "status", "5xx", "error", "none"}},
		{2, "kapsel_attempts_total", []string{"outcome", "failed", "status", "5xx", "error", "none"}},
		{2, "kapsel_attempts_total", []string{"outcome", "failed", "status", "none", "error", "connection_refused"}},
		{2, "kapsel_attempt_duration_seconds", []string{"outcome", "delivered"}},
		{2, "kapsel_delivery_duration_seconds", []string{"state", "delivered"}},
		{4, "kapsel_delivery_duration_seconds", []string{"state", "dead"}},
		{3, "kapsel_events_total", []string{"result", "accepted"}},
		{1, "kapsel_queue_destination_deliveries", []string{"destination_id", parked.Destinations[0].ID}},
		{leaves, "kapsel_log_tree_size", []string{"log_id", s.made.LogID}},
		{leaves, "kapsel_log_published_size", []string{"log_id", s.made.LogID}},
		{leaves, "kapsel_log_leaves_sequenced_total", nil},
		{0, "kapsel_log_queue_leaves", nil},
		{0, "kapsel_log_dead_letters", nil},
		{1, "kapsel_workers", nil},
		{1, "kapsel_backlog_up", nil},
		{0, "kapsel_dispatcher_in_flight", nil},
		{200, "kapsel_dispatcher_places", nil},
	} {
		require.InDelta(t, want.value, sum(families, want.family, want.labels...), 0.01, "%s %v", want.family, want.labels)
	}
	require.Positive(t, sum(families, "kapsel_log_publish_duration_seconds"))
	require.Positive(t, sum(families, "kapsel_commit_rows", "group", "record"))
	require.Positive(t, sum(families, "kapsel_partitions_ahead_seconds"))
	require.Positive(t, sum(families, "temporal_local_activity_execution_latency_seconds", "activity_type", "SendAttempt"))
	require.Positive(t, sum(families, "temporal_activity_execution_latency_seconds", "activity_type", "SendBatch"))

	problems, err := testutil.GatherAndLint(s.registry)
	require.NoError(t, err)
	require.Empty(t, problems)
	log, err := os.ReadFile(filepath.Join(s.dir, "kapsel.log"))
	require.NoError(t, err)
	require.NotContains(t, string(log), "was not registered")
	requireLabelsExist(t, families)

	scraped, err := http.Get(s.metrics)
	require.NoError(t, err)
	text, err := io.ReadAll(scraped.Body)
	require.NoError(t, err)
	require.NoError(t, scraped.Body.Close())
	require.Contains(t, string(text), "kapsel_http_requests_total")
}

func gather(t *testing.T, from prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	gathered, err := from.Gather()
	require.NoError(t, err)
	families := map[string]*dto.MetricFamily{}
	for _, family := range gathered {
		families[family.GetName()] = family
	}
	return families
}

// sum adds what a family's series with these labels say; of histograms how often they were told.
func sum(families map[string]*dto.MetricFamily, name string, labels ...string) (total float64) {
	for _, m := range families[name].GetMetric() {
		has := []string{}
		for _, l := range m.GetLabel() {
			has = append(has, l.GetName()+"="+l.GetValue())
		}
		all := true
		for i := 0; i < len(labels); i += 2 {
			all = all && strings.Contains("\n"+strings.Join(has, "\n")+"\n", "\n"+labels[i]+"="+labels[i+1]+"\n")
		}
		if all {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}
