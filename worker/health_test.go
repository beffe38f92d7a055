package worker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// askHealth asks one question of a worker's health.
func askHealth(t *testing.T, h *Health, name string) (int, healthAnswer) {
	t.Helper()
	recorder := httptest.NewRecorder()
	h.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/health/"+name, nil))
	var answer healthAnswer
	require.NoError(t, json.Unmarshal(recorder.Body.Bytes(), &answer))
	require.Equal(t, recorder.Code == http.StatusServiceUnavailable, recorder.Header().Get("Retry-After") != "")
	return recorder.Code, answer
}

// From its start to its end: live all along, started once and for all, ready as long as everything holds.
func TestHealthOfAWorker(t *testing.T) {
	t.Parallel()
	h := NewHealth()
	alive := false
	requireHealth := func(ready, startup int, failing ...string) {
		t.Helper()
		code, _ := askHealth(t, h, "live")
		require.Equal(t, http.StatusOK, code)
		code, _ = askHealth(t, h, "startup")
		require.Equal(t, startup, code)
		code, answer := askHealth(t, h, "ready")
		require.Equal(t, ready, code)
		var wrong []string
		for check, state := range answer.Checks {
			if state != checkOK {
				wrong = append(wrong, check)
			}
		}
		require.ElementsMatch(t, failing, wrong)
	}
	requireHealth(503, 503, CheckSchema, CheckLease, CheckTemporal, CheckStarted)
	h.Set(CheckSchema, "")
	h.Set(CheckTemporal, "")
	requireHealth(503, 503, CheckLease, CheckStarted)
	h.started(func() bool { return alive })
	requireHealth(503, 200, CheckLease)
	alive = true
	requireHealth(200, 200)
	h.Set(CheckTemporal, "does not answer")
	requireHealth(503, 200, CheckTemporal)
	h.Set(CheckTemporal, "")
	h.Set(CheckTraffic, "stopping")
	requireHealth(503, 200, CheckTraffic)
}
