package activities_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// testBundle is a database with one log, and a tenant with an endpoint and a destination.
type testBundle struct {
	url                           string
	owner, engine                 *pgxpool.Pool
	log                           admin.Log
	keyDir, highWaterDir          string
	tenant, endpoint, destination uuid.UUID
	worker                        uuid.UUID
}

func setup(t testing.TB) *testBundle {
	t.Helper()
	b := &testBundle{url: postgrestest.New(t), keyDir: t.TempDir(), highWaterDir: t.TempDir(), endpoint: id.New(), worker: id.New()}
	b.owner = postgrestest.Pool(t, b.url, postgres.Owner)
	b.engine = postgrestest.Pool(t, b.url, postgres.Engine)
	var err error
	b.log, err = admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: b.keyDir, HighWaterDir: b.highWaterDir})
	require.NoError(t, err)
	b.tenant, err = admin.CreateTenant(t.Context(), b.owner, "Example Bank", b.log.ID)
	require.NoError(t, err)
	b.exec(t, `insert into endpoints (id, tenant_id, name, verification, duplicates) values ($1, $2, 'in', '{"scheme":"none"}', '{}')`, b.endpoint, b.tenant)
	b.destination = b.addDestination(t, "https://example.com/in")
	require.NoError(t, postgres.AddWorker(t.Context(), b.engine, b.worker, "test"))
	b.exec(t, "update workers set alive_until = now() + interval '1 hour'")
	return b
}

func (b *testBundle) addDestination(t testing.TB, url string) uuid.UUID {
	t.Helper()
	destination := id.New()
	b.exec(t, `insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule)
		values ($1, $2, $3, $4, false, 5000, '{"type":"list","delays_ms":[1000,2000]}')`, destination, b.tenant, b.endpoint, url)
	return destination
}

func (b *testBundle) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(context.Background(), sql, args...)
	require.NoError(t, err)
}

// tamper runs a statement as a superuser for whom no trigger fires.
func (b *testBundle) tamper(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), "set session_replication_role = replica")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// value reads one value.
func value[T any](t testing.TB, b *testBundle, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, b.owner.QueryRow(context.Background(), sql, args...).Scan(&v))
	return v
}

func random32() []byte {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	return secret
}

// acceptance is a webhook with one delivery.
func (b *testBundle) acceptance(body, headers string, destination uuid.UUID) *postgres.Acceptance {
	event, salt := id.New(), random32()
	return &postgres.Acceptance{
		EventID: event, TenantID: b.tenant, EndpointID: b.endpoint, LogID: b.log.ID,
		ContentType: "application/json", Headers: []byte(headers), Body: []byte(body),
		PayloadHash: verify.Commitment(verify.LabelPayload, salt, []byte(body)), Salt: salt, Secret: random32(),
		Deliveries: []postgres.NewDelivery{{ID: id.At(event), DestinationID: destination}},
	}
}

// accept stores n webhooks to a destination and returns their deliveries, which nobody carries yet.
func (b *testBundle) accept(t testing.TB, n int, destination uuid.UUID) []uuid.UUID {
	t.Helper()
	var rows []*postgres.Acceptance
	var deliveries []uuid.UUID
	for range n {
		row := b.acceptance("{}", "Content-Type: application/json\r\n", destination)
		rows = append(rows, row)
		deliveries = append(deliveries, row.Deliveries[0].ID)
	}
	_, err := postgres.Accept(t.Context(), b.engine, rows)
	require.NoError(t, err)
	return deliveries
}

// claim claims up to n deliveries of a destination: the start of each is counted.
func (b *testBundle) claim(t testing.TB, n int, destination uuid.UUID) {
	t.Helper()
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker, Claim: id.New(), Destinations: []uuid.UUID{destination}, Quotas: []int{n}, Lane: postgres.LaneWorkflow})
	require.NoError(t, err)
	require.Len(t, claimed, n)
}

// claimed returns n new deliveries that the bundle's worker has claimed.
func (b *testBundle) claimed(t testing.TB, n int) []uuid.UUID {
	t.Helper()
	deliveries := b.accept(t, n, b.destination)
	b.claim(t, n, b.destination)
	return deliveries
}

func (b *testBundle) recorder(t testing.TB) *activities.Recorder {
	t.Helper()
	r := activities.NewRecorder(activities.RecorderConfig{DB: b.engine})
	t.Cleanup(r.Close)
	return r
}

func (b *testBundle) sealing() *activities.Sealing {
	return activities.NewSealing(activities.SealingConfig{
		DB: b.engine, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir, Log: zap.NewNop(),
	})
}

var someHash = strings.Repeat("ab", 32)

// answered is the outcome of a request that got a status.
func answered(status int, outcome, state string) activities.Outcome {
	return activities.Outcome{
		AttemptedAt: time.Now(), Duration: 41 * time.Millisecond, EndpointURL: "https://example.com/in",
		URLHash: someHash, HeadersHash: someHash, ResponseStatus: status, ResponseHash: someHash, ResponseSize: 2,
		Outcome: outcome, State: state, Grace: time.Minute,
	}
}

func delivered() activities.Outcome { return answered(200, "delivered", "delivered") }

func retried(delay time.Duration) activities.Outcome {
	o := answered(503, "retry", "pending")
	o.Delay = delay
	return o
}

func parked(delay time.Duration) activities.Outcome {
	o := retried(delay)
	o.Park = true
	return o
}

func failed(reason string) activities.Outcome {
	o := answered(400, "failed", "dead")
	o.Reason = reason
	return o
}

func gone() activities.Outcome {
	o := failed("gone")
	o.ResponseStatus, o.DisableDestination = 410, true
	return o
}

// deliveryRow is a delivery as it is stored.
type deliveryRow struct {
	State       string
	Epoch       int
	NextAttempt int
	LostStarts  int
	Leaves      int
	LastHash    []byte
	DueIn       *float64 // seconds
	CheckIn     *float64 // seconds
	Finished    bool
	Queued      bool
	Claimed     bool
	QueuedFor   int     // the attempt
	QueueDueIn  float64 // seconds
}

type attemptRow struct {
	ID       uuid.UUID
	Number   int
	Kind     string
	Outcome  string
	Epoch    int
	Status   int
	LeafHash []byte
	Body     []byte
	Headers  []byte
}

// read returns a delivery, its attempts, and their leaves, wherever those are, in the order of the chain.
func (b *testBundle) read(t testing.TB, delivery uuid.UUID) (d deliveryRow, attempts []attemptRow, leaves []*verify.Leaf) {
	t.Helper()
	err := b.engine.QueryRow(t.Context(), `select d.state, d.epoch, d.next_attempt, d.lost_starts, d.leaves, d.last_leaf_hash,
			extract(epoch from d.due_at - now())::float8, extract(epoch from d.check_after - now())::float8, d.finished_at is not null,
			q.delivery_id is not null, q.claim_id is not null, coalesce(q.attempt, 0), coalesce(extract(epoch from q.due_at - now()), 0)::float8
		from deliveries d left join delivery_queue q on q.delivery_id = d.id where d.id = $1`, delivery).
		Scan(&d.State, &d.Epoch, &d.NextAttempt, &d.LostStarts, &d.Leaves, &d.LastHash, &d.DueIn, &d.CheckIn, &d.Finished,
			&d.Queued, &d.Claimed, &d.QueuedFor, &d.QueueDueIn)
	require.NoError(t, err)
	rows, err := b.engine.Query(t.Context(), `select id, number, kind, outcome, epoch, response_status, leaf_hash, response_body, response_headers
		from attempts where delivery_id = $1 order by number = 0, number`, delivery)
	require.NoError(t, err)
	attempts, err = pgx.CollectRows(rows, pgx.RowToStructByPos[attemptRow])
	require.NoError(t, err)
	for _, a := range attempts {
		stored := value[[][]byte](t, b, `select array_agg(leaf) from (select leaf from leaf_queue where attempt_id = $1
			union all select leaf from merkle_leaves where attempt_id = $1) l`, a.ID)
		require.Len(t, stored, 1, "an attempt has exactly one leaf")
		require.Equal(t, verify.LeafHash(stored[0]), a.LeafHash)
		leaf, err := verify.ParseLeaf(stored[0])
		require.NoError(t, err)
		leaves = append(leaves, leaf)
	}
	return d, attempts, leaves
}

// explained reads a delivery and requires that its attempts explain its state: invariants 4 and 5.
func (b *testBundle) explained(t testing.TB, delivery uuid.UUID) (deliveryRow, []attemptRow, []*verify.Leaf) {
	t.Helper()
	d, attempts, leaves := b.read(t, delivery)
	require.Equal(t, d.Leaves, len(leaves))
	previous, requests := "", 0
	for i, leaf := range leaves {
		a := attempts[i]
		if a.Kind == "attempt" {
			requests++
			require.Equal(t, requests, a.Number)
		}
		require.Equal(t, id.Attempt.Format(id.AttemptOf(delivery, a.Number)), leaf.AttemptID)
		require.Equal(t, id.Delivery.Format(delivery), leaf.DeliveryID)
		require.Equal(t, id.Tenant.Format(b.tenant), leaf.TenantID)
		require.Equal(t, b.log.Origin, leaf.Origin)
		require.EqualValues(t, i+1, leaf.Seq)
		require.Equal(t, previous, leaf.PreviousLeafHash)
		require.EqualValues(t, requests, leaf.AttemptNumber)
		require.Equal(t, a.Kind, leaf.Kind)
		require.Equal(t, a.Outcome, leaf.Outcome)
		require.EqualValues(t, a.Status, leaf.ResponseStatus)
		previous = hex.EncodeToString(a.LeafHash)
	}
	require.Equal(t, previous, hex.EncodeToString(d.LastHash))
	require.Equal(t, requests+1, d.NextAttempt)
	require.Equal(t, d.State != "pending", d.Finished)
	requireEnd(t, d, leaves)
	return d, attempts, leaves
}

// requireEnd wants exactly one terminal leaf, the last, of a delivery that is over, and none of one that isn't.
func requireEnd(t testing.TB, d deliveryRow, leaves []*verify.Leaf) {
	t.Helper()
	terminal := 0
	for i, leaf := range leaves {
		if leaf.Kind != "attempt" || leaf.Outcome == "delivered" {
			terminal++
			require.Equal(t, len(leaves)-1, i, "nothing follows the terminal leaf")
		}
		if leaf.Kind == "attempt" && leaf.Outcome == "failed" {
			require.Equal(t, len(leaves)-2, i, "the dead leaf follows the failed attempt")
			require.Equal(t, "dead", leaves[i+1].Kind)
		}
	}
	if d.State == "pending" {
		require.Zero(t, terminal)
		return
	}
	require.Equal(t, 1, terminal)
	last := leaves[len(leaves)-1]
	require.Equal(t, map[string]string{"delivered": "attempt", "dead": "dead", "canceled": "canceled"}[d.State], last.Kind)
	require.False(t, d.Queued, "a delivery that is over isn't in the queue")
	require.Nil(t, d.DueIn)
	require.Nil(t, d.CheckIn)
}

// start counts the start of an attempt, unless that is done, and loads what it needs, as a sender does.
func (b *testBundle) start(t testing.TB, delivery uuid.UUID, epoch, attempt int, counted bool) error {
	t.Helper()
	start := postgres.Start{Delivery: delivery, Epoch: epoch, Attempt: attempt}
	if !counted {
		_, err := postgres.CountStart(t.Context(), b.engine, start)
		require.NoError(t, err)
	}
	loaded, err := postgres.Load(t.Context(), b.engine, []postgres.Start{start})
	require.NoError(t, err)
	return loaded[0].Err
}
