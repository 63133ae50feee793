// Clients in Java, for clients.py: the name of one is the argument.

import java.io.FileInputStream;
import java.net.*;
import java.net.http.*;
import java.nio.file.*;
import java.security.KeyStore;
import java.security.cert.*;
import javax.net.ssl.*;

class Client {
  static final String URL = System.getenv("URL");
  static final Path BODY = Paths.get(System.getenv("BODY"));

  static final Authenticator ASKED = new Authenticator() {
    protected PasswordAuthentication getPasswordAuthentication() {
      return new PasswordAuthentication(System.getenv("UUID"), "any".toCharArray());
    }
  };

  static SSLContext trust() throws Exception {
    KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
    store.load(null, null);
    try (FileInputStream file = new FileInputStream(System.getenv("CA"))) {
      for (Certificate each : CertificateFactory.getInstance("X.509").generateCertificates(file))
        store.setCertificateEntry("" + each.hashCode(), each);
    }
    TrustManagerFactory factory =
        TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    factory.init(store);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(null, factory.getTrustManagers(), null);
    return context;
  }

  static void httpClient() throws Exception {
    HttpClient client = HttpClient.newBuilder().sslContext(trust()).authenticator(ASKED).build();
    HttpRequest.Builder to = HttpRequest.newBuilder(URI.create(URL));
    HttpResponse.BodyHandler<String> text = HttpResponse.BodyHandlers.ofString();
    System.out.println(client.send(to.build(), text).body());
    to.POST(HttpRequest.BodyPublishers.ofFile(BODY));
    System.out.println(client.send(to.build(), text).body());
  }

  static void httpUrlConnection() throws Exception {
    Authenticator.setDefault(ASKED);
    HttpsURLConnection.setDefaultSSLSocketFactory(trust().getSocketFactory());
    System.out.println(new String(new URL(URL).openStream().readAllBytes()));
    URLConnection connection = new URL(URL).openConnection();
    connection.setDoOutput(true);
    connection.getOutputStream().write(Files.readAllBytes(BODY));
    System.out.println(new String(connection.getInputStream().readAllBytes()));
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments[0].equals("HttpClient")) httpClient(); else httpUrlConnection();
  }
}
