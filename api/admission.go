package api

import (
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

const (
	// ratesKept is for how many tenants a process knows how fast they have been lately, and rateForgotten how long without a
	// webhook it does: by then its bucket is full again.
	ratesKept     = 100_000
	rateForgotten = 10 * time.Second
)

// admission bounds how many requests are under way, in all and for one endpoint: each costs a goroutine and what its headers hold,
// and an endpoint's ID is all that it takes to send one. It also keeps tenants to their rate, if there is one.
type admission struct {
	max, share int
	rate       rate.Limit // webhooks a second and tenant; 0: any
	tenants    *otter.Cache[uuid.UUID, *rate.Limiter]

	mu        sync.Mutex
	total     int
	endpoints map[uuid.UUID]int // only those with a request under way
}

func newAdmission(config *Config) *admission {
	return &admission{
		max: config.MaxRequests, share: max(config.MaxRequests/2, 1), rate: rate.Limit(config.TenantRate),
		endpoints: map[uuid.UUID]int{},
		tenants: otter.Must(&otter.Options[uuid.UUID, *rate.Limiter]{
			MaximumSize: ratesKept, ExpiryCalculator: otter.ExpiryAccessing[uuid.UUID, *rate.Limiter](rateForgotten),
		}),
	}
}

// enter counts a request of an endpoint until leave is called, or says why it can't be had.
func (a *admission) enter(endpoint uuid.UUID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total >= a.max {
		return unavailable("Too many requests are under way. Send the request again later.", time.Second, nil)
	}
	if a.endpoints[endpoint] >= a.share {
		return tooMany("Too many requests of this endpoint are under way. Send the request again later.", nil)
	}
	a.total++
	a.endpoints[endpoint]++
	return nil
}

func (a *admission) leave(endpoint uuid.UUID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total--
	if a.endpoints[endpoint]--; a.endpoints[endpoint] == 0 {
		delete(a.endpoints, endpoint)
	}
}

// within charges a verified webhook to its tenant: one whose sender nobody knows is charged to nobody.
func (a *admission) within(tenant uuid.UUID) error {
	if a.rate == 0 {
		return nil
	}
	limiter, _ := a.tenants.ComputeIfAbsent(tenant, func() (*rate.Limiter, bool) {
		return rate.NewLimiter(a.rate, max(int(a.rate), 1)), false
	})
	if !limiter.Allow() {
		return tooMany("This tenant sends more webhooks a second than it may. Send the request again later.", nil)
	}
	return nil
}
