package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

const rulesFile = "../deploy/prometheus/rules.yml"

func alertRules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(rulesFile, false)
	require.Empty(t, errs)
	alerts := map[string]rulefmt.Rule{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			require.NotContains(t, alerts, rule.Alert.Value)
			alerts[rule.Alert.Value] = rulefmt.Rule{
				Alert: rule.Alert.Value, Expr: rule.Expr.Value, For: rule.For, KeepFiringFor: rule.KeepFiringFor,
				Labels: rule.Labels, Annotations: rule.Annotations,
			}
		}
	}
	return alerts
}

// episode is a time in which an alert has to begin to fire, and the time before, in which it must not.
type episode struct {
	alert  string
	series string // as promtool writes them, one sample a minute
	quiet  int    // minutes after which the alert doesn't fire yet
	fires  int    // minutes after which it does
	says   string // in its summary
}

var episodes = []episode{
	{"KapselTargetDown", `up{job="kapsel-api",instance="api-1:9090"} 1x5 0x10
		up{job="else",instance="x"} 0x20`, 7, 9, "api-1:9090 (kapsel-api)"},
	{"KapselNoWorkers", `up{job="kapsel-worker",instance="a"} 1x20
		kapsel_workers{instance="a"} 1x5 0x10`, 6, 8, "No worker"},
	{"KapselNoWorkers", `up{job="kapsel-worker",instance="a"} 1x5 0x10
		kapsel_workers{instance="a"} 1x5 stale`, 6, 8, "No worker"},
	{"KapselPostgresAway", `kapsel_backlog_up{instance="a"} 1x5 0x10
		kapsel_backlog_up{instance="b"} 0x5 1x2 0x10`, 8, 11, "Postgres"},
	{"KapselPoolExhausted", `kapsel_postgres_acquire_seconds_total{job="kapsel-api",instance="a",pool="ingest"} 0+6x10 60+90x20
		kapsel_postgres_acquires_total{job="kapsel-api",instance="a",pool="ingest"} 0+100x30`, 15, 25, "Pool ingest of a"},
	{"KapselCommitsFail", `kapsel_commit_failures_total{group="record",instance="a"} 0x5 0+3x20`, 9, 20, "group record"},
	{"KapselTemporalFails", `temporal_request_failure_total{operation="StartWorkflowExecution",status_code="ALREADY_EXISTS"} 0+90x30
		temporal_request_failure_total{operation="StartWorkflowExecution",status_code="UNAVAILABLE"} 0x10 0+50x20
		temporal_request_total{operation="StartWorkflowExecution"} 0+100x30`, 14, 20, "of the workers' requests"},
	{"KapselPartitionsMissing", `kapsel_partitions_ahead_seconds{instance="a"} 1209600x10 172800x30`, 20, 28, "In 2d 0h 0m 0s"},
	{"KapselApiErrors", `kapsel_http_requests_total{route="/x",status="200"} 0+600x30
		kapsel_http_requests_total{route="/x",status="508"} 0+600x30
		kapsel_http_requests_total{route="/x",status="404"} 0+600x30
		kapsel_http_requests_total{route="/x",status="503"} 0x10 0+60x20`, 14, 22, "of all requests"},
	{"KapselIngestSlow", `kapsel_http_request_duration_seconds_bucket{route="/ingest/:endpoint_id",method="POST",le="1"} 0+100x10 1000x40
		kapsel_http_request_duration_seconds_bucket{route="/ingest/:endpoint_id",method="POST",le="5"} 0+100x50
		kapsel_http_request_duration_seconds_bucket{route="/ingest/:endpoint_id",method="POST",le="+Inf"} 0+100x50`, 19, 35, "in a hundred"},
	{"KapselIngestFull", `kapsel_ingest_body_bytes{instance="a"} 10x5 90x10
		kapsel_ingest_body_bytes_max{instance="a"} 100x20`, 7, 10, "90%"},
	{"KapselDeliveriesLate", `kapsel_queue_oldest_due_seconds{instance="a"} 299x10 301x20`, 14, 18, "5m 1s"},
	{"KapselBacklogGrows", `kapsel_queue_deliveries{state="due"} 9000x5 10001+60x40
		kapsel_queue_deliveries{state="held"} 0+100000x40`, 19, 25, "More becomes due"},
	{"KapselAttemptsFail", `kapsel_attempts_total{outcome="delivered"} 0+60x15 900x40
		kapsel_attempts_total{outcome="retry"} 0+20x60`, 20, 45, "of all requests to receivers"},
	{"KapselDeliveriesDie", `kapsel_delivery_duration_seconds_count{state="delivered"} 0+60x120
		kapsel_delivery_duration_seconds_count{state="dead"} 0x60 0+10x60`, 65, 100, "ended as dead"},
	{"KapselCircuitsOpen", `kapsel_circuits{state="open",instance="a"} 20x10 21x30
		kapsel_circuits{state="half_open",instance="a"} 100x40`, 20, 30, "21 destinations"},
	{"KapselDestinationsDisabled", `kapsel_destinations_disabled_total{instance="a"} 0x10 1x10`, 9, 12, "disabled"},
	{"KapselCarriersLost", `kapsel_carriers_lost_total{by="sweeper"} 0x10 0+5x20`, 11, 20, "gone without a record"},
	{"KapselDispatcherFails", `kapsel_dispatcher_round_failures_total{instance="a",step="claim"} 0x10 0+60x20`, 13, 22, "keeps failing to claim"},
	{"KapselUnattested", `kapsel_log_oldest_unattested_seconds{instance="a"} 59x5 61x10`, 7, 9, "1m 1s"},
	{"KapselHeadOld", `kapsel_log_head_age_seconds{instance="a"} 600x5 901+60x20`, 9, 13, "old"},
	{"KapselSealFails", `temporal_activity_execution_failed_total{activity_type="SendAttempt"} 0+60x30
		temporal_activity_execution_failed_total{activity_type="SealLog"} 0x10 0+1x20`, 11, 16, "Sealing"},
	{"KapselSignerFails", `kapsel_signer_errors_total{cause="signer",instance="a"} 0x10 9+0.8x20
		kapsel_signer_errors_total{cause="timeout",instance="a"} 0x30`, 15, 17, "No head can be signed"},
	{"KapselLeavesSetAside", `kapsel_log_dead_letters{instance="a"} 0x5 2x5`, 4, 7, "2 leaves"},
	{"KapselLogShrank", `kapsel_log_published_size{log_id="log_1",instance="a"} 0+10x10 40x10
		kapsel_log_published_size{log_id="log_2",instance="a"} 5x20`, 10, 12, "Log log_1"},
}

// healthy is a system at work; no alert may fire.
const healthy = `up{job="kapsel-api",instance="a"} 1x120
	up{job="kapsel-worker",instance="b"} 1x120
	kapsel_workers{instance="b"} 2x120
	kapsel_backlog_up{instance="b"} 1x120
	kapsel_http_requests_total{status="200"} 0+6000x120
	kapsel_http_requests_total{status="401"} 0+600x120
	kapsel_http_request_duration_seconds_bucket{route="/ingest/:endpoint_id",method="POST",le="1"} 0+6000x120
	kapsel_http_request_duration_seconds_bucket{route="/ingest/:endpoint_id",method="POST",le="+Inf"} 0+6000x120
	kapsel_ingest_body_bytes{instance="a"} 1000x120
	kapsel_ingest_body_bytes_max{instance="a"} 100000x120
	kapsel_postgres_acquire_seconds_total{pool="ingest"} 0+6x120
	kapsel_postgres_acquires_total{pool="ingest"} 0+6000x120
	kapsel_commit_failures_total{group="accept"} 0x120
	kapsel_attempts_total{outcome="delivered"} 0+6000x120
	kapsel_attempts_total{outcome="retry"} 0+600x120
	kapsel_delivery_duration_seconds_count{state="delivered"} 0+6000x120
	kapsel_delivery_duration_seconds_count{state="dead"} 0+20x120
	kapsel_queue_oldest_due_seconds{instance="b"} 2x120
	kapsel_queue_deliveries{state="due"} 100x120
	kapsel_circuits{state="open"} 3x120
	kapsel_destinations_disabled_total{instance="b"} 2x120
	kapsel_carriers_lost_total{by="sweeper"} 7x120
	kapsel_dispatcher_round_failures_total{step="claim"} 4x120
	kapsel_partitions_ahead_seconds{instance="b"} 1209600x120
	kapsel_log_oldest_unattested_seconds{instance="b"} 9x120
	kapsel_log_head_age_seconds{instance="b"} 5x120
	kapsel_signer_errors_total{cause="signer",instance="b"} 0x60 9x60
	kapsel_log_dead_letters{instance="b"} 0x120
	kapsel_log_published_size{log_id="log_1"} 0+100x120
	temporal_activity_execution_failed_total{activity_type="SealLog"} 1x120
	temporal_request_failure_total{operation="StartWorkflowExecution",status_code="UNAVAILABLE"} 0+1x120
	temporal_request_total{operation="StartWorkflowExecution"} 0+6000x120`

func TestAlertsFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	alerts := alertRules(t)
	tried := map[string]bool{}
	for i, e := range episodes {
		tried[e.alert] = true
		t.Run(fmt.Sprintf("%s-%d", e.alert, i), func(t *testing.T) {
			t.Parallel()
			rule, known := alerts[e.alert]
			require.True(t, known)
			require.Empty(t, firing(t, rule, e.series, e.quiet), "too early")
			fired := firing(t, rule, e.series, e.fires)
			require.Len(t, fired, 1)
			summary := fired[0].Annotations.Get("summary")
			require.Contains(t, summary, e.says)
			require.NotContains(t, summary, "error expanding")
		})
	}
	for name, rule := range alerts {
		require.True(t, tried[name], "%s is never tried", name)
		evaluate(t, rule, healthy, 120, func(fired []*rules.Alert) { require.Empty(t, fired, name) })
	}
}

// firing returns what fires after so many minutes.
func firing(t *testing.T, rule rulefmt.Rule, series string, minutes int) (alerts []*rules.Alert) {
	t.Helper()
	evaluate(t, rule, series, minutes, func(fired []*rules.Alert) { alerts = fired })
	return alerts
}

// evaluate evaluates a rule once a minute, as Prometheus does, and tells each time what fires.
func evaluate(t *testing.T, rule rulefmt.Rule, series string, minutes int, tell func(fired []*rules.Alert)) {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n\t"+series)
	defer func() { require.NoError(t, storage.Close()) }()
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	expr, err := parser.ParseExpr(rule.Expr)
	require.NoError(t, err)
	alerting := rules.NewAlertingRule(rule.Alert, expr, time.Duration(rule.For), time.Duration(rule.KeepFiringFor),
		labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations), labels.EmptyLabels(), "", true, nil)
	for minute := range minutes + 1 {
		at := time.Unix(0, 0).Add(time.Duration(minute) * time.Minute)
		_, err := alerting.Eval(context.Background(), 0, at, rules.EngineQueryFunc(engine, storage), nil, 0)
		require.NoError(t, err)
		tell(slices.DeleteFunc(alerting.ActiveAlerts(), func(a *rules.Alert) bool { return a.State != rules.StateFiring }))
	}
}

// Every alert has a severity and a page that says what it means, how to look and what to do; there is no page without one.
func TestAlertsHaveRunbooks(t *testing.T) {
	t.Parallel()
	const at = "https://github.com/kapsel-io/kapsel/blob/main/"
	pages := []string{"README.md"}
	index, err := os.ReadFile("../docs/runbooks/README.md")
	require.NoError(t, err)
	for name, rule := range alertRules(t) {
		require.Contains(t, []string{"page", "ticket"}, rule.Labels["severity"], name)
		require.Equal(t, at+"docs/runbooks/"+name+".md", rule.Annotations["runbook_url"])
		page, err := os.ReadFile(filepath.Join("..", strings.TrimPrefix(rule.Annotations["runbook_url"], at)))
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(string(page), "# "+name+"\n"), name)
		for _, section := range []string{"\n## What it means\n", "\n## How to look\n", "\n## What to do\n"} {
			require.Contains(t, string(page), section, name)
		}
		require.Contains(t, string(index), "("+name+".md)")
		pages = append(pages, name+".md")
	}
	entries, err := os.ReadDir("../docs/runbooks")
	require.NoError(t, err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "Kapsel") {
			require.Contains(t, pages, entry.Name(), "a page without an alert")
		}
	}
}

// The queries of the runbooks run as they stand.
func TestRunbooksQueries(t *testing.T) {
	t.Parallel()
	owner := postgrestest.Pool(t, postgrestest.New(t), postgres.Owner)
	queries := 0
	pages, err := filepath.Glob("../docs/runbooks/*.md")
	require.NoError(t, err)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, part := range strings.Split(string(text), "```sql\n")[1:] {
			block, _, closed := strings.Cut(part, "```")
			require.True(t, closed, page)
			for _, query := range strings.Split(strings.TrimSpace(block), ";\n") {
				queries++
				_, err := owner.Exec(t.Context(), query)
				require.NoError(t, err, "%s: %s", page, query)
			}
		}
	}
	require.Greater(t, queries, 10)
}

// expressions are all that Prometheus is asked, by where that stands.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name, rule := range alertRules(t) {
		all[name] = rule.Expr
	}
	for name, board := range dashboards(t) {
		for i, query := range board.queries() {
			all[fmt.Sprintf("%s %d", name, i)] = query
		}
	}
	return all
}

var (
	metricNamed = regexp.MustCompile(`"(kapsel_[a-z_]+)"`)
	sdkNamed    = regexp.MustCompile(`TemporalMetricsPrefix \+ "([a-z_]+)"`)
	sdkRequests = regexp.MustCompile(` TemporalRequest \+ "([a-z_]+)"`)
	derived     = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// knownMetrics are the names in the source of Kapsel and of Temporal's SDK, and some of Prometheus's own.
func knownMetrics(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{"up": true, "go_goroutines": true, "go_memstats_heap_inuse_bytes": true, "process_cpu_seconds_total": true,
		"process_resident_memory_bytes": true}
	for _, dir := range []string{"api", "worker", "activities", "postgres"} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, name := range metricNamed.FindAllStringSubmatch(string(source), -1) {
				known[name[1]] = true
			}
		}
	}
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "go.temporal.io/sdk").Output()
	require.NoError(t, err)
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "internal", "common", "metrics", "constants.go"))
	require.NoError(t, err)
	names := sdkNamed.FindAllStringSubmatch(string(source), -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		for _, suffix := range []string{"", "_total", "_seconds"} { // as contrib/tally's naming scope adds them
			known["temporal_"+name[1]+suffix] = true
		}
	}
	for _, name := range sdkRequests.FindAllStringSubmatch(string(source), -1) {
		known["temporal_request"+name[1]+"_total"], known["temporal_request"+name[1]+"_seconds"] = true, true
	}
	return known
}

func TestRulesAndDashboardsNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	known := knownMetrics(t)
	for where, query := range expressions(t) {
		for _, selector := range selectors(t, where, query) {
			require.True(t, known[selector.Name] || known[derived.ReplaceAllString(selector.Name, "")], "%s: %s doesn't exist", where, selector.Name)
		}
	}
}

func selectors(t *testing.T, where, query string) (all []*parser.VectorSelector) {
	t.Helper()
	expr, err := parser.ParseExpr(query)
	require.NoError(t, err, where)
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			all = append(all, selector)
		}
		return nil
	})
	require.NotEmpty(t, all, where)
	return all
}

// requireLabelsExist checks the labels that rules and dashboards ask for, of all metrics that a system had something to tell of.
func requireLabelsExist(t *testing.T, families map[string]*dto.MetricFamily) {
	t.Helper()
	checked := 0
	for where, query := range expressions(t) {
		for _, selector := range selectors(t, where, query) {
			family := families[selector.Name]
			if family == nil {
				family = families[derived.ReplaceAllString(selector.Name, "")]
			}
			if family == nil {
				continue
			}
			for _, matcher := range selector.LabelMatchers {
				if slices.Contains([]string{labels.MetricName, "job", "instance", labels.BucketLabel}, matcher.Name) {
					continue
				}
				checked++
				require.True(t, slices.ContainsFunc(family.GetMetric(), func(m *dto.Metric) bool {
					return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == matcher.Name })
				}), "%s: %s has no label %s", where, selector.Name, matcher.Name)
			}
		}
	}
	require.Greater(t, checked, 20)
}

// Prometheus reads the rules that are tested here.
func TestPrometheusReadsTheRules(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../deploy/prometheus/prometheus.yml")
	require.NoError(t, err)
	var config struct {
		RuleFiles []string `yaml:"rule_files"`
		Scrape    []struct {
			Job string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	require.NoError(t, yaml.Unmarshal(text, &config))
	require.Equal(t, []string{"rules.yml"}, config.RuleFiles)
	jobs := map[string]bool{}
	for _, scrape := range config.Scrape {
		jobs[scrape.Job] = true
	}
	require.True(t, jobs["kapsel-api"] && jobs["kapsel-worker"], "the rules tell them apart")
}
