package api

import (
	"context"
	"errors"
	"time"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// readyTimeout is how long Postgres may take to say that it is there.
const readyTimeout = 2 * time.Second

// GetLive answers as long as the process does. It doesn't look at Postgres: restarting the api wouldn't bring that back.
func (s *Server) GetLive(context.Context, openapi.GetLiveRequestObject) (openapi.GetLiveResponseObject, error) {
	return openapi.GetLive200JSONResponse{Status: openapi.Ok}, nil
}

// GetReady says whether webhooks can be accepted: both roles can be used, and the schema is there.
func (s *Server) GetReady(ctx context.Context, _ openapi.GetReadyRequestObject) (openapi.GetReadyResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := errors.Join(s.config.Engine.Ping(ctx), s.config.API.Ping(ctx)); err != nil {
		return nil, unavailable("Postgres does not answer.", 2*time.Second, err)
	}
	switch current, err := s.config.Current(ctx); {
	case err != nil:
		return nil, unavailable("Postgres does not answer.", 2*time.Second, err)
	case !current:
		return nil, unavailable("The database's schema is missing or older than this version needs: run kapsel migrate.", 10*time.Second, nil)
	}
	return openapi.GetReady200JSONResponse{Status: openapi.Ok}, nil
}
