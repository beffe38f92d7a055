package worker

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
)

// The checks of a worker's health, in the order in which one depends on the other, and what is said of one that holds.
const (
	CheckTraffic  = "traffic"
	CheckSchema   = "schema"
	CheckLease    = "lease"
	CheckTemporal = "temporal"
	CheckStarted  = "started"
	checkOK       = "ok"
)

// Temporal is asked every askEvery, and is away if it takes longer than askFor.
const (
	askEvery = 2 * time.Second
	askFor   = 2 * time.Second
)

// Health says how a worker is, at /health/live, /health/ready and /health/startup, as Kubernetes means them. What it says is what
// the worker found out by itself: a probe asks nobody.
type Health struct {
	mu     sync.Mutex
	states map[string]string
	lease  func() bool // nil: there is none yet
}

// NewHealth is how a worker is before it has begun.
func NewHealth() *Health {
	return &Health{states: map[string]string{
		CheckTraffic: checkOK, CheckSchema: "waiting for Postgres", CheckTemporal: "waiting for it", CheckStarted: "not yet",
	}}
}

// Set says what is wrong with a check; "" if nothing is.
func (h *Health) Set(check, wrong string) {
	if wrong == "" {
		wrong = checkOK
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.states[check] = wrong
}

// started is called once, when the worker works.
func (h *Health) started(lease func() bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lease, h.states[CheckStarted] = lease, checkOK
}

// healthAnswer is what a probe gets.
type healthAnswer struct {
	Status string            `json:"status"` // ok or unavailable
	Checks map[string]string `json:"checks,omitempty"`
}

func (h *Health) ready() (healthAnswer, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := healthAnswer{Status: checkOK, Checks: map[string]string{CheckLease: "not held: Postgres is away, or was not asked yet"}}
	if h.lease != nil && h.lease() {
		a.Checks[CheckLease] = checkOK
	}
	for check, state := range h.states {
		a.Checks[check] = state
	}
	for _, state := range a.Checks {
		if state != checkOK {
			a.Status = "unavailable"
		}
	}
	return a, a.Status == checkOK
}

// startup stays what it is once the worker has started.
func (h *Health) startup() (healthAnswer, bool) {
	h.mu.Lock()
	started := h.states[CheckStarted] == checkOK
	h.mu.Unlock()
	if started {
		return healthAnswer{Status: checkOK}, true
	}
	a, _ := h.ready()
	a.Status = "unavailable"
	delete(a.Checks, CheckTraffic)
	return a, false
}

// Handler answers probes.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health/live", answerWith(func() (healthAnswer, bool) { return healthAnswer{Status: checkOK}, true }))
	mux.HandleFunc("GET /health/ready", answerWith(h.ready))
	mux.HandleFunc("GET /health/startup", answerWith(h.startup))
	return mux
}

func answerWith(how func() (healthAnswer, bool)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		answer, ok := how()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !ok {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// watchTemporal asks Temporal how it is until ctx ends.
func (w *Worker) watchTemporal(ctx context.Context) {
	var failing outage
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, askFor)
		_, err := w.temporal.CheckHealth(asking, &client.CheckHealthRequest{})
		cancel()
		if ctx.Err() != nil {
			return
		}
		failing.note(w.config.Log, "reach Temporal", err)
		wrong := ""
		if err != nil {
			wrong = "does not answer"
		}
		w.config.Health.Set(CheckTemporal, wrong)
		pause(ctx, askEvery)
	}
}
