package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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
// share one query.
type endpointCache struct {
	pool    *pgxpool.Pool
	watch   *postgres.Watch
	cache   *otter.Cache[uuid.UUID, *endpoint] // nil: there is none
	filters *otter.Cache[string, *delivery.CompiledFilter]
}

func newEndpointCache(pool *pgxpool.Pool, watch *postgres.Watch) *endpointCache {
	return &endpointCache{pool: pool, watch: watch, cache: otter.Must(&otter.Options[uuid.UUID, *endpoint]{
		MaximumSize:      cachedEndpoints,
		ExpiryCalculator: otter.ExpiryWriting[uuid.UUID, *endpoint](endpointTTL),
	}), filters: otter.Must(&otter.Options[string, *delivery.CompiledFilter]{
		MaximumSize:      cachedFilters,
		ExpiryCalculator: otter.ExpiryAccessing[string, *delivery.CompiledFilter](filterTTL),
	})}
}

// get returns the endpoint, or nil if there is none.
func (c *endpointCache) get(ctx context.Context, id uuid.UUID) (*endpoint, error) {
	return c.cache.Get(ctx, id, otter.LoaderFunc[uuid.UUID, *endpoint](c.load))
}

// forget makes the next request read the endpoint again. Other processes find out when their memory ends.
func (c *endpointCache) forget(id uuid.UUID) { c.cache.Invalidate(id) }

// load runs on behalf of all who wait for this endpoint, so it doesn't end with the one who came first; it does if Postgres goes away.
func (c *endpointCache) load(ctx context.Context, id uuid.UUID) (*endpoint, error) {
	there, leave := c.watch.While(context.WithoutCancel(ctx))
	defer leave()
	ctx, cancel := context.WithTimeout(there, endpointLoadTime)
	defer cancel()
	row, err := db.New(c.pool).EndpointForIngest(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // that there is none is remembered like any other answer
	}
	if err != nil {
		return nil, fmt.Errorf("read endpoint: %w", err)
	}
	destinations, err := db.New(c.pool).DestinationsForIngest(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read destinations: %w", err)
	}
	e := &endpoint{id: row.ID, tenant: row.TenantID, log: row.LogID, origin: row.Origin, recordSkipped: row.RecordSkipped, operational: row.Operational,
		attestAcceptance: row.AttestAcceptance}
	for i, secret := range row.Secrets {
		held := sourceSecret{value: secret}
		if at := row.SecretExpiries[i]; at > 0 {
			held.expires = time.UnixMilli(at)
		}
		e.secrets = append(e.secrets, held)
	}
	for _, d := range destinations {
		e.recipients = append(e.recipients, c.newRecipient(d))
	}
	if err := json.Unmarshal(row.EventType, &e.eventType); err != nil {
		return nil, fmt.Errorf("read event type policy of endpoint %s: %w", id, err)
	}
	if err := json.Unmarshal(row.Verification, &e.source); err != nil {
		return nil, fmt.Errorf("read verification of endpoint %s: %w", id, err)
	}
	if err := json.Unmarshal(row.Duplicates, &e.duplicates); err != nil {
		return nil, fmt.Errorf("read duplicate policy of endpoint %s: %w", id, err)
	}
	if row.Ordering != nil {
		if err := json.Unmarshal(row.Ordering, &e.ordering); err != nil {
			return nil, fmt.Errorf("read ordering of endpoint %s: %w", id, err)
		}
	}
	return e, nil
}
