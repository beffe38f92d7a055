package api

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/maypok86/otter/v2"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// endpoint is what the way in needs to know of an endpoint.
type endpoint struct {
	id, tenant, log uuid.UUID
	origin          string // of the log
	source          webhook.Source
	duplicates      webhook.DuplicatePolicy
	ordering        *webhook.OrderPolicy // nil: deliveries wait for nobody
	operational     bool                 // it takes nothing from outside
	secrets         []sourceSecret       // oldest first
	eventType       webhook.EventTypePolicy
	recipients      []recipient
	recordSkipped   bool // whether what filters leave out is recorded
	// attestAcceptance: each event gets a leaf of its own.
	attestAcceptance bool
}

// sourceSecret is one of an endpoint's secrets, and when it expires; never, if that is the zero time.
type sourceSecret struct {
	value   []byte
	expires time.Time
}

// validSecrets leaves out what has expired since the endpoint was read, so that no secret outlives its time in memory.
func (e *endpoint) validSecrets(now time.Time) [][]byte {
	var valid [][]byte
	for _, secret := range e.secrets {
		if secret.expires.IsZero() || now.Before(secret.expires) {
			valid = append(valid, secret.value)
		}
	}
	return valid
}

// How long a process may go by what it read of an endpoint, and for how many endpoints it remembers it.
const (
	endpointTTL      = 2 * time.Second
	cachedEndpoints  = 10_000
	cachedFilters    = 2_000
	filterTTL        = 10 * time.Minute        // since it was last asked for
	endpointLoadTime = 1900 * time.Millisecond // also while all connections are taken: the caller hears of it within 2 s
)

// endpointCache remembers endpoints, and also that there is none, for endpointTTL. Concurrent misses of one endpoint
// share one read, and those of many endpoints the round trips: with thousands of endpoints nearly every webhook misses.
type endpointCache struct {
	pool    *pgxpool.Pool
	watch   *postgres.Watch
	cache   *otter.Cache[uuid.UUID, *endpoint] // nil: there is none
	reads   *postgres.Group[uuid.UUID, endpointRows]
	filters *otter.Cache[string, *delivery.CompiledFilter]
}

// newEndpointCache makes an empty one. Close it.
func newEndpointCache(pool *pgxpool.Pool, watch *postgres.Watch) *endpointCache {
	c := &endpointCache{pool: pool, watch: watch, cache: otter.Must(&otter.Options[uuid.UUID, *endpoint]{
		MaximumSize:      cachedEndpoints,
		ExpiryCalculator: otter.ExpiryWriting[uuid.UUID, *endpoint](endpointTTL),
	}), filters: otter.Must(&otter.Options[string, *delivery.CompiledFilter]{
		MaximumSize:      cachedFilters,
		ExpiryCalculator: otter.ExpiryAccessing[string, *delivery.CompiledFilter](filterTTL),
	})}
	c.reads = postgres.NewGroup(postgres.GroupConfig[uuid.UUID, endpointRows]{
		Commit:  c.read,
		Size:    func(uuid.UUID) int { return 1 },
		Timeout: endpointLoadTime,
	})
	return c
}

func (c *endpointCache) close() { c.reads.Close() }

// get returns the endpoint, or nil if there is none.
func (c *endpointCache) get(ctx context.Context, id uuid.UUID) (*endpoint, error) {
	return c.cache.Get(ctx, id, otter.LoaderFunc[uuid.UUID, *endpoint](c.load))
}

// forget makes the next request read the endpoint again. Other processes find out when their memory ends.
func (c *endpointCache) forget(id uuid.UUID) { c.cache.Invalidate(id) }

// endpointRows is what Postgres has of one endpoint.
type endpointRows struct {
	endpoint     *db.EndpointsForIngestRow // nil: there is none
	destinations []db.DestinationsForIngestRow
}

// read reads several endpoints; it ends if Postgres goes away.
func (c *endpointCache) read(ctx context.Context, ids []uuid.UUID) ([]endpointRows, error) {
	ctx, leave := c.watch.While(ctx)
	defer leave()
	endpoints, err := db.New(c.pool).EndpointsForIngest(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	destinations, err := db.New(c.pool).DestinationsForIngest(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read destinations: %w", err)
	}
	found := make(map[uuid.UUID]*endpointRows, len(ids))
	for i := range endpoints {
		found[endpoints[i].ID] = &endpointRows{endpoint: &endpoints[i]}
	}
	for _, d := range destinations {
		if of := found[d.EndpointID]; of != nil { // else it was deleted before its destinations were, or made after
			of.destinations = append(of.destinations, d)
		}
	}
	rows := make([]endpointRows, len(ids))
	for i, id := range ids {
		if of := found[id]; of != nil {
			rows[i] = *of
		}
	}
	return rows, nil
}

// load runs on behalf of all who wait for this endpoint, so it doesn't end with the one who came first.
func (c *endpointCache) load(ctx context.Context, id uuid.UUID) (*endpoint, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endpointLoadTime)
	defer cancel()
	rows, err := c.reads.Do(ctx, id)
	if err != nil || rows.endpoint == nil { // that there is none is remembered like any other answer
		return nil, err
	}
	return c.newEndpoint(rows)
}

// newEndpoint reads what is stored.
func (c *endpointCache) newEndpoint(rows endpointRows) (*endpoint, error) {
	row := rows.endpoint
	e := &endpoint{id: row.ID, tenant: row.TenantID, log: row.LogID, origin: row.Origin, recordSkipped: row.RecordSkipped, operational: row.Operational,
		attestAcceptance: row.AttestAcceptance}
	for i, secret := range row.Secrets {
		held := sourceSecret{value: secret}
		if at := row.SecretExpiries[i]; at > 0 {
			held.expires = time.UnixMilli(at)
		}
		e.secrets = append(e.secrets, held)
	}
	for _, d := range rows.destinations {
		e.recipients = append(e.recipients, c.newRecipient(d))
	}
	if err := json.Unmarshal(row.EventType, &e.eventType); err != nil {
		return nil, fmt.Errorf("read event type policy of endpoint %s: %w", row.ID, err)
	}
	if err := json.Unmarshal(row.Verification, &e.source); err != nil {
		return nil, fmt.Errorf("read verification of endpoint %s: %w", row.ID, err)
	}
	if err := json.Unmarshal(row.Duplicates, &e.duplicates); err != nil {
		return nil, fmt.Errorf("read duplicate policy of endpoint %s: %w", row.ID, err)
	}
	if row.Ordering != nil {
		if err := json.Unmarshal(row.Ordering, &e.ordering); err != nil {
			return nil, fmt.Errorf("read ordering of endpoint %s: %w", row.ID, err)
		}
	}
	return e, nil
}
