"use strict";

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  // Whole, and without the name and password that the page's own address may hold: a browser makes
  // no request of a script to an address that holds them.
  url: new URL("openapi", location.origin + location.pathname).href,
  presets: [SwaggerUIBundle.presets.apis],
  // Otherwise the document would be sent to somebody else's server, to be checked there.
  validatorUrl: null,
  deepLinking: true,
  displayRequestDuration: true,
});
