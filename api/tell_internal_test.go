package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// tellTest is a database with a log, and a server that tells what is recorded there when it is asked to.
type tellTest struct {
	*teller
	url           string
	owner, engine *pgxpool.Pool
	log           admin.Log
	recorder      *activities.Recorder
	woken         int
}

// tellTenant is a tenant with an ordinary endpoint, and perhaps an operational one.
type tellTenant struct {
	id, endpoint, destination uuid.UUID
	operational, told         uuid.UUID // the operational endpoint and its destination
}

func telling(t *testing.T) *tellTest {
	t.Helper()
	b := &tellTest{url: postgrestest.New(t)}
	b.owner, b.engine = postgrestest.Pool(t, b.url, postgres.Owner), postgrestest.Pool(t, b.url, postgres.Engine)
	var err error
	b.log, err = admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
	require.NoError(t, err)
	b.recorder = activities.NewRecorder(activities.RecorderConfig{DB: b.engine})
	t.Cleanup(b.recorder.Close)
	b.teller = &teller{Server: b.server(t, func() { b.woken++ })}
	return b
}

func (b *tellTest) server(t testing.TB, notify func()) *Server {
	t.Helper()
	s, err := New(Config{Engine: b.engine, API: postgrestest.Pool(t, b.url, postgres.API), Notify: notify})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func (b *tellTest) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(context.Background(), sql, args...)
	require.NoError(t, err)
}

func (b *tellTest) count(t testing.TB, sql string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, b.owner.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

func (b *tellTest) waiting(t testing.TB) int {
	t.Helper()
	return b.count(t, "select count(*) from operational_outbox")
}

func (b *tellTest) addTenant(t testing.TB, name string, operational bool) (tenant tellTenant) {
	t.Helper()
	var err error
	tenant.id, err = admin.CreateTenant(t.Context(), b.owner, name, b.log.ID)
	require.NoError(t, err)
	tenant.endpoint, tenant.destination = b.addEndpoint(t, tenant.id, false)
	if operational {
		tenant.operational, tenant.told = b.addEndpoint(t, tenant.id, true)
	}
	return tenant
}

func (b *tellTest) addEndpoint(t testing.TB, tenant uuid.UUID, operational bool) (endpoint, destination uuid.UUID) {
	t.Helper()
	endpoint = id.New()
	b.exec(t, `insert into endpoints (id, tenant_id, name, verification, duplicates, operational) values ($1, $2, 'in', '{"scheme":"none"}', '{}', $3)`,
		endpoint, tenant, operational)
	return endpoint, b.addDestination(t, tenant, endpoint)
}

func (b *tellTest) addDestination(t testing.TB, tenant, endpoint uuid.UUID) uuid.UUID {
	t.Helper()
	destination := id.New()
	b.exec(t, `insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule)
		values ($1, $2, $3, 'https://example.com/hidden-path', false, 5000, '{}')`, destination, tenant, endpoint)
	return destination
}

// accept stores a webhook to a destination.
func (b *tellTest) accept(t testing.TB, tenant, endpoint, destination uuid.UUID, headers string) (event, delivery uuid.UUID) {
	t.Helper()
	event, body := id.New(), []byte(`{"card":"hidden-body"}`)
	row := &postgres.Acceptance{
		EventID: event, TenantID: tenant, EndpointID: endpoint, LogID: b.log.ID, ContentType: "application/json",
		Headers: []byte("X-Token: hidden-header\r\n" + headers), Body: body, Salt: make([]byte, 32), Secret: make([]byte, 32),
		PayloadHash: verify.Commitment(verify.LabelPayload, make([]byte, 32), body),
		Deliveries:  []postgres.NewDelivery{{ID: id.At(event), DestinationID: destination}},
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	return event, row.Deliveries[0].ID
}

// fails is the outcome of a request that wasn't delivered.
func fails(status int, class string) activities.Outcome {
	hash := strings.Repeat("ab", 32)
	o := activities.Outcome{
		AttemptedAt: time.Now(), EndpointURL: "https://example.com/hidden-path", URLHash: hash, HeadersHash: hash,
		ResponseStatus: status, Error: class, Outcome: "retry", State: "pending", Delay: time.Hour, Grace: time.Minute,
	}
	if status != 0 {
		o.ResponseHash, o.ResponseSize = hash, 2
	}
	return o
}

// dies is one after which the delivery is dead.
func dies(status int, class, reason string) activities.Outcome {
	o := fails(status, class)
	o.Outcome, o.State, o.Reason, o.Delay = "failed", "dead", reason, 0
	o.DisableDestination = reason == "gone"
	return o
}

func (b *tellTest) record(t testing.TB, delivery uuid.UUID, attempt int, outcome activities.Outcome) error {
	t.Helper()
	_, err := b.recorder.Record(t.Context(), activities.Recording{
		Delivery: delivery, Attempt: attempt, Outcome: outcome, Response: activities.Response{Body: []byte("hidden-answer")}})
	return err
}

// die lets a webhook of a tenant be rejected.
func (b *tellTest) die(t testing.TB, tenant tellTenant, headers string) (event, delivery uuid.UUID) {
	t.Helper()
	event, delivery = b.accept(t, tenant.id, tenant.endpoint, tenant.destination, headers)
	require.NoError(t, b.record(t, delivery, 1, dies(400, "", "rejected")))
	return event, delivery
}

// toldEvent is an event of an operational endpoint, and what is to be delivered of it.
type toldEvent struct {
	Tenant, Endpoint uuid.UUID
	ContentType      string
	Hash, Salt, Body []byte
	Headers          []byte
	Destinations     []uuid.UUID
	Queued           int
}

// events reads what was told.
func (b *tellTest) events(t testing.TB, endpoint uuid.UUID) []toldEvent {
	t.Helper()
	rows, err := b.engine.Query(t.Context(), `select e.tenant_id, e.endpoint_id, e.content_type, e.payload_hash, p.salt, p.body, p.headers,
			array(select d.destination_id from deliveries d where d.event_id = e.id and d.log_id = $2 and d.state = 'pending' order by 1),
			(select count(*) from deliveries d join delivery_queue q on q.delivery_id = d.id where d.event_id = e.id)
		from events e join event_payloads p on p.event_id = e.id where e.endpoint_id = $1 order by e.id`, endpoint, b.log.ID)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[toldEvent])
	require.NoError(t, err)
	return found
}

// payload is the body of an operational webhook, whatever its type.
type payload struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      struct {
		TenantID      string     `json:"tenant_id"`
		EndpointID    string     `json:"endpoint_id"`
		DestinationID string     `json:"destination_id"`
		EventID       string     `json:"event_id"`
		DeliveryID    string     `json:"delivery_id"`
		AcceptedAt    *time.Time `json:"accepted_at"`
		Attempts      int        `json:"attempts"`
		Reason        string     `json:"reason"`
		FailingSince  *time.Time `json:"failing_since"`
		LastStatus    int        `json:"last_status"`
		LastError     string     `json:"last_error"`
	} `json:"data"`
}

func (e *toldEvent) payload(t testing.TB) (p payload) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(e.Body)))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&p))
	return p
}

// tellOne tells, wants that to be one more event of a tenant, whole and without anything of what was delivered, and reads it.
func (b *tellTest) tellOne(t testing.TB, tenant tellTenant) payload {
	t.Helper()
	before := len(b.events(t, tenant.operational))
	require.NoError(t, b.tell(t.Context()))
	require.Zero(t, b.waiting(t))
	events := b.events(t, tenant.operational)
	require.Len(t, events, before+1)
	e := events[before]
	require.Equal(t, tenant.id, e.Tenant)
	require.Equal(t, "application/json", e.ContentType)
	require.Equal(t, verify.Commitment(verify.LabelPayload, e.Salt, e.Body), e.Hash)
	require.Equal(t, []uuid.UUID{tenant.told}, e.Destinations)
	require.Equal(t, 1, e.Queued)
	require.NotContains(t, string(e.Body)+string(e.Headers), "hidden")
	p := e.payload(t)
	require.WithinDuration(t, time.Now(), p.Timestamp, time.Minute)
	require.Equal(t, id.Tenant.Format(tenant.id), p.Data.TenantID)
	require.Equal(t, id.Endpoint.Format(tenant.endpoint), p.Data.EndpointID)
	return p
}

func TestADeadDeliveryIsTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	event, delivery := b.accept(t, tenant.id, tenant.endpoint, tenant.destination, "")
	require.NoError(t, b.record(t, delivery, 1, fails(503, "")))
	require.Zero(t, b.waiting(t), "it will be tried again")
	require.NoError(t, b.record(t, delivery, 2, dies(0, "timeout", "attempts_exhausted")))
	p := b.tellOne(t, tenant)
	require.Equal(t, "delivery_dead", p.Type)
	require.Equal(t, id.Destination.Format(tenant.destination), p.Data.DestinationID)
	require.Equal(t, id.Event.Format(event), p.Data.EventID)
	require.Equal(t, id.Delivery.Format(delivery), p.Data.DeliveryID)
	require.Equal(t, id.Time(event).UTC(), p.Data.AcceptedAt.UTC())
	require.Equal(t, 2, p.Data.Attempts)
	require.Equal(t, "attempts_exhausted", p.Data.Reason)
	require.Equal(t, 0, p.Data.LastStatus)
	require.Equal(t, "timeout", p.Data.LastError)
	require.Equal(t, 1, b.woken, "the dispatcher hears of it")

	// Recorded again it changes nothing, so nothing is told.
	require.NoError(t, b.record(t, delivery, 2, dies(0, "timeout", "attempts_exhausted")))
	require.Zero(t, b.waiting(t))
}

// Kapsel's own events have types, so that a destination can choose among them; what it leaves out is proven as for any other.
func TestAFilterChoosesWhatIsTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	b.exec(t, `update destinations set filter = '{"event_types":["circuit_opened"]}' where id = $1`, tenant.told)
	b.die(t, tenant, "")
	require.NoError(t, b.tell(t.Context()))
	require.Zero(t, b.waiting(t))
	const told = `select count(*) from events e join deliveries d on d.event_id = e.id
		where e.endpoint_id = $1 and e.event_type = 'delivery_dead' and d.state = $2`
	require.Equal(t, 1, b.count(t, told, tenant.operational, "skipped"))
	require.Zero(t, b.count(t, told, tenant.operational, "pending"))
	require.Zero(t, b.count(t, `select count(*) from delivery_queue q join deliveries d on d.id = q.delivery_id where d.destination_id = $1`, tenant.told))

	b.exec(t, `update destinations set filter = '{"event_types":["delivery_dead"]}' where id = $1`, tenant.told)
	b.endpoints.forget(tenant.operational)
	b.die(t, tenant, "")
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, 1, b.count(t, told, tenant.operational, "pending"))
}

// A circuit that opens is told once: not each probe that fails.
func TestAnOpenedCircuitIsTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	fail := func(outcome activities.Outcome) {
		_, delivery := b.accept(t, tenant.id, tenant.endpoint, tenant.destination, "")
		require.NoError(t, b.record(t, delivery, 1, outcome))
	}
	for range 4 {
		fail(fails(503, ""))
	}
	require.Zero(t, b.waiting(t))
	fail(fails(0, "connection_refused"))
	p := b.tellOne(t, tenant)
	require.Equal(t, "circuit_opened", p.Type)
	require.Equal(t, id.Destination.Format(tenant.destination), p.Data.DestinationID)
	require.Equal(t, "connection_refused", p.Data.LastError)
	require.Equal(t, 0, p.Data.LastStatus)
	require.WithinDuration(t, time.Now(), *p.Data.FailingSince, time.Minute)
	require.False(t, p.Data.FailingSince.After(p.Timestamp))
	require.Empty(t, p.Data.DeliveryID+p.Data.EventID+p.Data.Reason)

	b.exec(t, "update circuits set probe_until = now()")
	probe, err := postgres.WinProbe(t.Context(), b.engine, tenant.destination, id.New(), time.Minute)
	require.NoError(t, err)
	outcome := fails(503, "")
	outcome.Probe = probe.Token.String()
	fail(outcome)
	require.Equal(t, 1, b.count(t, "select count(*) from circuits where state = 'open' and last_status = 503 and last_error = ''"))
	require.Zero(t, b.waiting(t), "the same outage")
}

func TestADisabledDestinationIsTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	_, delivery := b.accept(t, tenant.id, tenant.endpoint, tenant.destination, "")
	require.NoError(t, b.record(t, delivery, 1, dies(410, "", "gone")))
	require.NoError(t, b.tell(t.Context()))
	var types []string
	for _, e := range b.events(t, tenant.operational) {
		p := e.payload(t)
		types = append(types, p.Type)
		require.Equal(t, "gone", p.Data.Reason)
		require.Equal(t, 410, p.Data.LastStatus)
		require.Nil(t, p.Data.FailingSince)
	}
	require.ElementsMatch(t, []string{"delivery_dead", "destination_disabled"}, types)

	failing := b.addDestination(t, tenant.id, tenant.endpoint)
	b.exec(t, `insert into circuits (destination_id, tenant_id, ring, failing_since, failed_at, last_status, last_error)
		values ($1, $2, 1023, now() - interval '6 days', now(), 0, 'dns')`, failing, tenant.id)
	disabled, err := postgres.DisableFailing(t.Context(), b.engine, 5*24*time.Hour)
	require.NoError(t, err)
	require.Equal(t, []uuid.UUID{failing}, disabled)
	p := b.tellOne(t, tenant)
	require.Equal(t, "destination_disabled", p.Type)
	require.Equal(t, id.Destination.Format(failing), p.Data.DestinationID)
	require.Equal(t, "failing", p.Data.Reason)
	require.Equal(t, "dns", p.Data.LastError)
	require.WithinDuration(t, time.Now().Add(-6*24*time.Hour), *p.Data.FailingSince, time.Minute)

	b.exec(t, "update destinations set disabled_at = now(), disabled_reason = 'gone' where id = $1", failing)
	require.Zero(t, b.waiting(t), "it was disabled already")
}

// A tenant without an operational endpoint costs nothing, and what happens to an operational endpoint's own deliveries isn't
// told: that would be told again, for ever.
func TestWhatIsNotTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	without, with := b.addTenant(t, "Without", false), b.addTenant(t, "With", true)
	removed := b.addTenant(t, "Removed", true)
	b.exec(t, "update endpoints set deleted_at = now() where id = $1", removed.operational)
	for _, at := range [][3]uuid.UUID{
		{without.id, without.endpoint, without.destination},
		{with.id, with.operational, with.told},
		{removed.id, removed.endpoint, removed.destination},
	} {
		for range 5 {
			_, delivery := b.accept(t, at[0], at[1], at[2], "")
			require.NoError(t, b.record(t, delivery, 1, dies(503, "", "attempts_exhausted")))
		}
		_, delivery := b.accept(t, at[0], at[1], at[2], "")
		require.NoError(t, b.record(t, delivery, 1, dies(410, "", "gone")))
	}
	require.Equal(t, 3, b.count(t, "select count(*) from circuits where state = 'open'"))
	require.Equal(t, 3, b.count(t, "select count(*) from destinations where disabled_at is not null"))
	require.Zero(t, b.waiting(t))

	// The first endpoint's successor is told of the deliveries that the old one left behind no more than of its own.
	b.exec(t, "update endpoints set deleted_at = now() where id = $1", with.operational)
	b.addEndpoint(t, with.id, true)
	_, delivery := b.accept(t, with.id, with.operational, b.addDestination(t, with.id, with.operational), "")
	require.NoError(t, b.record(t, delivery, 1, dies(400, "", "rejected")))
	require.Zero(t, b.waiting(t))
	b.die(t, with, "")
	require.Equal(t, 1, b.waiting(t))
}

// Nothing is told that didn't happen: what a transaction wrote that failed at its very end is gone with it.
func TestWhatIsRolledBackIsNotTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	b.exec(t, `create constraint trigger failing after update on circuits deferrable initially deferred
		for each row execute function refuse_change()`)
	var deliveries []uuid.UUID
	for range 5 {
		_, delivery := b.accept(t, tenant.id, tenant.endpoint, tenant.destination, "")
		deliveries = append(deliveries, delivery)
	}
	require.ErrorContains(t, b.record(t, deliveries[0], 1, dies(503, "", "attempts_exhausted")), "refused")
	require.Zero(t, b.waiting(t))
	require.Equal(t, 5, b.count(t, "select count(*) from deliveries where state = 'pending'"))
	b.exec(t, "drop trigger failing on circuits")
	for _, delivery := range deliveries {
		require.NoError(t, b.record(t, delivery, 1, dies(503, "", "attempts_exhausted")))
	}
	require.Equal(t, 6, b.waiting(t), "five deliveries and a circuit")
}

// A process that dies while it tells leaves what is to be told, and none of what it made of it.
func TestACrashWhileTelling(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	for range 3 {
		b.die(t, tenant, "")
	}
	super, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	defer func() { _ = super.Close(context.Background()) }()
	composed := 0
	_, err = postgres.TellOccurrences(t.Context(), b.engine, uuid.Nil, composeFor, func(o *postgres.Occurrence) (*postgres.Acceptance, error) {
		composed++
		_, err := super.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'kapsel_engine' and state = 'idle in transaction'`)
		require.NoError(t, err)
		return b.operationalEvent(t.Context(), o)
	})
	require.Error(t, err)
	require.Equal(t, 3, composed, "it had taken them")
	require.Equal(t, 3, b.waiting(t))
	require.Empty(t, b.events(t, tenant.operational))

	// Nor is anything left of one that died before it committed what it had written.
	b.exec(t, "create constraint trigger failing after delete on operational_outbox deferrable initially deferred for each row execute function refuse_change()")
	require.ErrorContains(t, b.tell(t.Context()), "refused")
	require.Equal(t, 3, b.waiting(t))
	require.Empty(t, b.events(t, tenant.operational))
	b.exec(t, "drop trigger failing on operational_outbox")
	require.NoError(t, b.tell(t.Context()))
	require.Zero(t, b.waiting(t))
	require.Len(t, b.events(t, tenant.operational), 3)
}

// flood writes what a flood of dead deliveries would.
func (b *tellTest) flood(t testing.TB, tenant tellTenant, n int) {
	t.Helper()
	event, _ := b.accept(t, tenant.id, tenant.endpoint, tenant.destination, "")
	b.exec(t, `insert into operational_outbox (tenant_id, type, endpoint_id, destination_id, delivery_id, event_id, attempts, reason, last_status, last_error)
		select $1, 'delivery_dead', $2, $3, gen_random_uuid(), $4, 1, 'rejected', 400, '' from generate_series(1, $5)`,
		tenant.id, tenant.endpoint, tenant.destination, event, n)
}

// Many processes tell at once, and each occurrence becomes one event of its own tenant.
func TestManyProcessesTellEachOccurrenceOnce(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenants := []tellTenant{b.addTenant(t, "First", true), b.addTenant(t, "Second", true)}
	for _, tenant := range tenants {
		b.flood(t, tenant, 350)
	}
	var all sync.WaitGroup
	for range 4 {
		teller := &teller{Server: b.server(t, func() {})}
		all.Go(func() {
			if err := teller.tell(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.NoError(t, b.tell(t.Context()), "one may leave what another one has taken and given back")
	require.Zero(t, b.waiting(t))
	for _, tenant := range tenants {
		once := map[string]bool{}
		for _, e := range b.events(t, tenant.operational) {
			p := e.payload(t)
			require.Equal(t, id.Tenant.Format(tenant.id), p.Data.TenantID, "a tenant hears of nobody else's deliveries")
			require.Equal(t, []uuid.UUID{tenant.told}, e.Destinations)
			once[p.Data.DeliveryID] = true
		}
		require.Len(t, once, 350)
		require.Len(t, b.events(t, tenant.operational), 350)
	}
}

// One tenant's flood holds up another one's single occurrence for one transaction, and no transaction is large.
func TestAFloodHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenants := []tellTenant{b.addTenant(t, "First", true), b.addTenant(t, "Second", true), b.addTenant(t, "Third", true)}
	b.flood(t, tenants[0], 10_000)
	b.flood(t, tenants[1], 10_000)
	b.flood(t, tenants[2], 1)
	var after uuid.UUID
	for step := range 3 {
		told, err := postgres.TellOccurrences(t.Context(), b.engine, after, time.Minute,
			func(o *postgres.Occurrence) (*postgres.Acceptance, error) { return b.operationalEvent(t.Context(), o) })
		require.NoError(t, err)
		require.LessOrEqual(t, told.Taken, 100)
		require.Equal(t, step < 2, told.Next != uuid.Nil)
		after = told.Next
	}
	require.Len(t, b.events(t, tenants[2].operational), 1)
	require.Equal(t, 19_800, b.waiting(t))
}

// Whoever makes its events costly, by many filters, gets fewer of them in a step; the rest comes later, after the others'.
func TestCostlyEventsHoldUpNobody(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenants := []tellTenant{b.addTenant(t, "First", true), b.addTenant(t, "Second", true), b.addTenant(t, "Removed", true)}
	for _, tenant := range tenants {
		b.flood(t, tenant, 3)
	}
	b.exec(t, "update endpoints set deleted_at = now() where id = $1", tenants[2].operational)
	var after uuid.UUID
	var counts [][2]int
	for b.waiting(t) > 0 {
		told, err := postgres.TellOccurrences(t.Context(), b.engine, after, time.Nanosecond,
			func(o *postgres.Occurrence) (*postgres.Acceptance, error) { return b.operationalEvent(t.Context(), o) })
		require.NoError(t, err)
		require.LessOrEqual(t, told.Events, 1)
		after = told.Next
		counts = append(counts, [2]int{len(b.events(t, tenants[0].operational)), len(b.events(t, tenants[1].operational))})
	}
	// One of each in turn. The steps that change nothing are at the end of the round: first what is told nobody, then nothing.
	require.Equal(t, [][2]int{{1, 0}, {1, 1}, {1, 1}, {2, 1}, {2, 2}, {2, 2}, {3, 2}, {3, 3}}, counts)
}

// What waits for an operational endpoint that was removed is told nobody, and doesn't wait for ever.
func TestARemovedOperationalEndpointIsToldNothing(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	b.die(t, tenant, "")
	b.exec(t, "update endpoints set deleted_at = now() where id = $1", tenant.operational)
	require.NoError(t, b.tell(t.Context()))
	require.Zero(t, b.waiting(t))
	require.Empty(t, b.events(t, tenant.operational))
	require.Zero(t, b.woken)
}

// What is told of a dead delivery says through how many deliveries its webhook has come, so that it can't go round for ever.
func TestADeadDeliverysHopsAreTold(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	for _, tc := range []struct {
		arrived string
		want    int
	}{
		{"", webhook.MaxHops - 1},
		{fmt.Sprintf("Kapsel-Delivery-Id: %s\r\nKapsel-Hops: %d\r\n", id.Delivery.Format(id.New()), webhook.MaxHops), webhook.MaxHops + 1},
	} {
		_, delivery := b.die(t, tenant, tc.arrived)
		b.tellOne(t, tenant)
		events := b.events(t, tenant.operational)
		headers, err := webhook.DecodeHeaders(events[len(events)-1].Headers)
		require.NoError(t, err)
		require.Equal(t, id.Delivery.Format(delivery), headers.Get(webhook.HeaderDeliveryID))
		require.Equal(t, tc.want, webhook.Hops(headers))
	}
}

// The api can neither read what is to be told nor write it.
func TestTheAPIHasNothingToTell(t *testing.T) {
	t.Parallel()
	b := telling(t)
	tenant := b.addTenant(t, "Example Bank", true)
	b.die(t, tenant, "")
	api := postgrestest.Pool(t, b.url, postgres.API)
	for _, statement := range []string{"select from operational_outbox", "delete from operational_outbox",
		"insert into operational_outbox default values", "select is_told(gen_random_uuid(), gen_random_uuid())"} {
		err := postgres.InTenant(t.Context(), api, tenant.id, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), statement)
			return err
		})
		require.ErrorContains(t, err, "permission denied", statement)
	}
}
