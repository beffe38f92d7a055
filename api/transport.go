package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

const usualMinTLS = "1.2"

// newTransport is a transport that was found to be right.
type newTransport struct {
	settings webhook.Transport
	expires  *time.Time // the client certificate
}

// parseTransport names the first member that is wrong.
func (s *Server) parseTransport(base string, body *openapi.NewTransport) (*newTransport, error) {
	for member, v := range map[string]*string{"min_tls": body.MinTLS, "ca_pem": body.CaPem, "client_cert_pem": body.ClientCertPem,
		"client_key_pem": body.ClientKeyPem, "proxy_url": body.ProxyURL} {
		if v != nil && *v == "" { // which would mean as usual, to somebody who meant something
			return nil, invalidField(join(base, member), "must not be empty. Leave it out for the default")
		}
	}
	settings, expires, err := webhook.Transport{
		MinTLS: value(body.MinTLS), CAPEM: value(body.CaPem), ClientCertPEM: value(body.ClientCertPem),
		ClientKeyPEM: value(body.ClientKeyPem), ProxyURL: value(body.ProxyURL),
	}.Checked(time.Now(), s.config.Allow...)
	if err != nil {
		return nil, invalidBecause(base, err)
	}
	if settings.MinTLS == "" {
		settings.MinTLS = usualMinTLS
	}
	t := &newTransport{settings: settings}
	if !expires.IsZero() {
		expires = expires.UTC()
		t.expires = &expires
	}
	return t, nil
}

func (t *newTransport) usual() bool { return t.settings == webhook.Transport{MinTLS: usualMinTLS} }

func (t *newTransport) insert(ctx context.Context, q *db.Queries, tenant, destination uuid.UUID) error {
	proxy := webhook.ProxyAddress(t.settings.ProxyURL)
	return q.InsertTransport(ctx, db.InsertTransportParams{
		DestinationID: destination, TenantID: tenant, MinTls: t.settings.MinTLS,
		CaPem: unlessEmpty(t.settings.CAPEM), ClientCertPem: unlessEmpty(t.settings.ClientCertPEM),
		ClientKeyPem: unlessEmpty(t.settings.ClientKeyPEM), ClientCertExpiresAt: t.expires,
		ProxyUrl: unlessEmpty(t.settings.ProxyURL), Proxy: unlessEmpty(proxy),
	})
}

// answer leaves out the key and the proxy's credentials.
func (t *newTransport) answer() openapi.Transport {
	return openapi.Transport{
		MinTLS: t.settings.MinTLS, CaPem: unlessEmpty(t.settings.CAPEM), ClientCertPem: unlessEmpty(t.settings.ClientCertPEM),
		ClientCertExpiresAt: t.expires, Proxy: unlessEmpty(webhook.ProxyAddress(t.settings.ProxyURL)),
	}
}

// GetTransport reads how a destination is reached.
func (s *Server) GetTransport(ctx context.Context, request openapi.GetTransportRequestObject) (openapi.GetTransportResponseObject, error) {
	answer := openapi.Transport{MinTLS: usualMinTLS}
	err := s.reading(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		row, err := q.GetTransport(ctx, destination)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		answer = openapi.Transport{
			MinTLS: row.MinTls, CaPem: row.CaPem, ClientCertPem: row.ClientCertPem, ClientCertExpiresAt: row.ClientCertExpiresAt, Proxy: row.Proxy,
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get transport: %w", err)
	}
	return openapi.GetTransport200JSONResponse(answer), nil
}

// PutTransport replaces how a destination is reached. The old row is deleted, since this role may not read what it would
// have to compare.
func (s *Server) PutTransport(ctx context.Context, request openapi.PutTransportRequestObject) (openapi.PutTransportResponseObject, error) {
	t, err := s.parseTransport("", request.Body)
	if err != nil {
		return nil, err
	}
	err = s.inSending(ctx, request.DestinationID, func(q *db.Queries, tenant, destination uuid.UUID) error {
		if err := q.DeleteTransport(ctx, destination); err != nil || t.usual() {
			return err
		}
		return t.insert(ctx, q, tenant, destination)
	})
	if err != nil {
		return nil, fmt.Errorf("replace transport: %w", err)
	}
	return openapi.PutTransport200JSONResponse(t.answer()), nil
}
