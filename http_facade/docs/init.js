"use strict";

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi",
  presets: [SwaggerUIBundle.presets.apis],
  // Otherwise the document would be sent to somebody else's server, to be checked there.
  validatorUrl: null,
  deepLinking: true,
  displayRequestDuration: true,
});
