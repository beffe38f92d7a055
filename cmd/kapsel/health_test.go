package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHealthSaysHowAProcessIs(t *testing.T) {
	t.Parallel()
	ready := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte(`{"status":"…"}`))
	}))
	t.Cleanup(server.Close)
	ask := func(url string) (string, error) {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs([]string{"health", url})
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	said, err := ask(server.URL + "/health/ready")
	require.NoError(t, err)
	require.JSONEq(t, `{"status":"…"}`, said)
	ready = false
	_, err = ask(server.URL + "/health/ready")
	require.ErrorContains(t, err, "503")
	server.Close()
	_, err = ask(server.URL + "/health/ready")
	require.ErrorContains(t, err, "no answer")
	for _, bad := range []string{"127.0.0.1:8080", "ftp://127.0.0.1/", "http://", "ready"} {
		_, err = ask(bad)
		require.ErrorContains(t, err, "the argument is a URL", bad)
	}
}
