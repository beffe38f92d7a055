package main

import (
	"fmt"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
)

// temporal makes the options to connect with. The variables have the names that Temporal's own tools and SDKs give them;
// those tools' configuration files aren't read.
func (c *Config) temporal() (client.Options, error) {
	profile := envconfig.ClientConfigProfile{Address: c.TemporalAddress, Namespace: c.TemporalNamespace, APIKey: c.TemporalAPIKey}
	files := envconfig.ClientConfigTLS{
		ServerCACertPath: c.TemporalCA, ClientCertPath: c.TemporalCert, ClientKeyPath: c.TemporalKey, ServerName: c.TemporalServerName,
	}
	if c.TemporalTLS || c.TemporalCA != "" || c.TemporalCert != "" || c.TemporalKey != "" || c.TemporalServerName != "" {
		profile.TLS = &files
	}
	options, err := profile.ToClientOptions(envconfig.ToClientOptionsRequest{})
	if err != nil {
		return client.Options{}, fmt.Errorf("the TEMPORAL_TLS_… variables can't be used: %w", err)
	}
	return options, nil
}
