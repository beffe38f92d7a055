package temporal

import (
	uiserver "github.com/temporalio/ui-server/v2/server"
	uiconfig "github.com/temporalio/ui-server/v2/server/config"
	uioptions "github.com/temporalio/ui-server/v2/server/server_options"
)

// startUI serves the Web UI from the assets that its module embeds. It asks nobody on the internet for news or versions.
//
// Should its port be taken in the instant since that was checked, the UI's own server ends this process: it offers no
// way to hand it a listener or to get the error.
func startUI(p ports) *uiserver.Server {
	ui := uiserver.NewServer(uioptions.WithConfigProvider(&uiconfig.Config{
		Host:                host,
		Port:                p.ui,
		TemporalGRPCAddress: address(p.frontend),
		DefaultNamespace:    Namespace,
		EnableUI:            true,
		CORS:                uiconfig.CORS{CookieInsecure: true}, // plain HTTP on loopback
		DisableNewsFetch:    true,
		HideLogs:            true,
	}))
	go func() { _ = ui.Start() }() // returns nil after Stop, and nothing else
	return ui
}
